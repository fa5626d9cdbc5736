const figures = JSON.parse(document.getElementById('figures').textContent);
const dark = window.matchMedia('(prefers-color-scheme: dark)');
function colour() { return getComputedStyle(document.documentElement).getPropertyValue('--text').trim(); }
for (const [name, figure] of Object.entries(figures)) {
  const font = Object.assign({}, figure.layout.font, {color: colour()});
  const margin = Object.assign({}, figure.layout.margin, {t: 10});
  const layout = Object.assign({}, figure.layout, {font: font, margin: margin, title: undefined});
  Plotly.newPlot('figure-' + name, figure.data, layout, {responsive: true, displaylogo: false, displayModeBar: 'hover'});
}
dark.addEventListener('change', () => {
  for (const name of Object.keys(figures)) Plotly.relayout('figure-' + name, {'font.color': colour()});
});
for (const table of document.querySelectorAll('table.sortable')) {
  table.querySelectorAll('th').forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') === 'descending';
    table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const value = row => { const cell = row.cells[column]; const key = cell.dataset.value;
      return key === undefined ? cell.textContent : Number(key); };
    const rows = Array.from(table.tBodies[0].rows).sort((a, b) => {
      const x = value(a), y = value(b);
      const order = typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y));
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}
