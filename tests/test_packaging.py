"""The package as users get it: wheel, editable install and bare checkout; and what continuous integration runs."""

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROBE = """
import sys
import recbole_gmc, recbole_gmc.baselines, recbole_gmc.properties
from recbole_gmc.lookup import find_yaml
for name in ("properties/model/GMC.yaml", "properties/benchmark/SASRec.yaml", "properties/dataset/ml-100k-genres.yaml"):
    print(find_yaml(name))
for name in ("properties", "baselines"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        print("no module", name)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The checkout's files without what git ignores, so that builds leave nothing behind."""
    target = tmp_path_factory.mktemp("copy") / "checkout"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "runs", ".*_cache")
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


def run(*command, cwd, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(printed, folder):
    *files, first, second = printed.splitlines()
    assert (first, second) == ("no module properties", "no module baselines")
    assert len(files) == 3 and all(Path(file).is_relative_to(folder) for file in files), printed


def test_wheel_editable_install_and_checkout(copy, tmp_path):
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *flags, "-w", tmp_path / "wheels", copy, cwd=tmp_path)
    (wheel,) = (tmp_path / "wheels").glob("recbole_gmc-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"recbole_gmc"}
    modules = {str(path.relative_to(copy)) for path in (copy / "recbole_gmc").rglob("*.py")}
    assert modules <= set(names), "every module is in the wheel"
    for place in ("properties", "baselines"):
        files = [path for path in (copy / place).rglob("*") if path.suffix in (".py", ".yaml")]
        assert {f"recbole_gmc/{path.relative_to(copy)}" for path in files} <= set(names), "every property file too"
    (tmp_path / "elsewhere").mkdir()
    probe = (sys.executable, "-c", PROBE)
    check(run(*probe, cwd=tmp_path / "elsewhere", PYTHONPATH=str(tmp_path / "site")), tmp_path / "site")

    checkout = "import sys; sys.path.insert(0, sys.argv[1])\n" + PROBE.replace(
        "__import__(name)", "raise ModuleNotFoundError"
    )
    check(run(sys.executable, "-c", checkout, copy, cwd=tmp_path / "elsewhere"), copy)

    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip())
    (site / "parent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(python, "-m", "pip", "install", *flags, "--ignore-installed", "-e", copy, cwd=tmp_path)
    assert not {"properties", "baselines"} & {path.name for path in site.iterdir()}
    check(run(python, "-c", PROBE, cwd=tmp_path / "elsewhere"), copy)
    assert (tmp_path / "env/bin/recbole-gmc").is_file()


def test_every_folder_with_code_is_listed():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = set(settings["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "recbole_gmc").rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} | {
        "recbole_gmc.properties",
        "recbole_gmc.baselines",
    } == listed
    version = settings["metadata"]["version"]
    assert f'__version__ = "{version}"' in (ROOT / "recbole_gmc/__init__.py").read_text()


@pytest.mark.parametrize(
    ("readme", "status", "said"),
    [
        ("<!-- test -->\n\n```bash\necho tested && \\\n  ls\n```\n", 0, "tested"),
        ("<!-- test -->\n```\nfalse && echo no\necho no\n```\n", 1, ""),
        ("```\necho tested\n```\n", 1, "no code block after <!-- test -->"),
    ],
)
def test_ci_runs_the_command_of_the_readme(tmp_path, readme, status, said):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "README.md").write_text(readme)
    (tmp_path / ".gitignore").write_text(".venv/\n")
    (tmp_path / ".venv").mkdir()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    browser = tmp_path / "bin/chromium"  # else the script would install one
    browser.parent.mkdir()
    browser.write_text("#!/bin/sh\n")
    browser.chmod(0o755)
    (tmp_path / ".gitignore").write_text(".venv/\nbin/\n")
    environment = {**os.environ, "PATH": f"{browser.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [tmp_path / ".ci/run"], capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL, env=environment
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout + done.stderr and ".venv" not in done.stdout
