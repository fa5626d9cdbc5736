const figures = JSON.parse(document.getElementById('figures').textContent);
const dark = window.matchMedia('(prefers-color-scheme: dark)');
// What the legend takes is added to a figure, so that its plot keeps its height on a narrow page, too.
function height(figure, width) {
  const named = figure.data.filter(trace => trace.showlegend !== false && trace.name);
  if (named.length < 2) return figure.layout.height;
  const letters = Math.max(...named.map(trace => trace.name.length));
  const columns = Math.max(1, Math.floor((width - 80) / (7 * letters + 50)));
  return figure.layout.height + 20 * Math.max(0, Math.ceil(named.length / columns) - 1);
}
function colour() { return getComputedStyle(document.documentElement).getPropertyValue('--text').trim(); }
function makeRoom() {
  for (const [name, figure] of Object.entries(figures)) {
    const place = document.getElementById('figure-' + name);
    place.style.height = height(figure, place.clientWidth) + 'px';
  }
}
makeRoom();
window.addEventListener('resize', makeRoom);  // before Plotly's own listener, which then fills the room
for (const [name, figure] of Object.entries(figures)) {
  const font = Object.assign({}, figure.layout.font, {color: colour()});
  const margin = Object.assign({}, figure.layout.margin, {t: 10});
  const place = document.getElementById('figure-' + name);
  const legend = Object.assign({}, figure.layout.legend, {maxheight: 0.8});
  const layout = Object.assign({}, figure.layout, {font: font, margin: margin, title: undefined, legend: legend,
    height: undefined, autosize: true});
  Plotly.newPlot(place, figure.data, layout, {responsive: true, displaylogo: false, displayModeBar: 'hover'});
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
      const number = typeof x === 'number';
      if (number !== (typeof y === 'number')) return number ? -1 : 1;  // cells without a number stay last
      const order = number ? x - y : x.localeCompare(y);
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}
