// The time axis: charts of what happened when, one range for all of them.

// Axis holds the range that is shown, in microseconds since 1970, and tells
// others when it changes.
class Axis {
  constructor(from, to) {
    const margin = (to - from) * 0.01;
    this.all = [from - margin, to + margin];
    this.range = this.all.slice();
    this.host = -1; // all
    this.listeners = [];
  }
  get zoomed() { return this.range[0] > this.all[0] || this.range[1] < this.all[1]; }
  on(fn) { this.listeners.push(fn); }
  set(from, to) {
    const least = 1000, [lo, hi] = this.all; // a millisecond
    if (!(to - from >= least)) { const m = (from + to) / 2; from = m - least / 2; to = m + least / 2; }
    const width = Math.min(to - from, hi - lo);
    from = Math.min(Math.max(from, lo), hi - width);
    if (from === this.range[0] && from + width === this.range[1]) return;
    this.range = [from, from + width];
    this.tell();
  }
  tell() { for (const fn of this.listeners) fn(); }
  reset() { this.set(...this.all); }
  zoom(factor, around) {
    const [a, b] = this.range, m = around === undefined ? (a + b) / 2 : around;
    this.set(m - (m - a) * factor, m + (b - m) * factor);
  }
  move(part) { const [a, b] = this.range, by = (b - a) * part; this.set(a + by, b + by); }
  // key handles a key pressed on a chart.
  key(e) {
    if (e.ctrlKey || e.altKey || e.metaKey) return;
    const act = {
      ArrowLeft: () => this.move(-0.2), ArrowRight: () => this.move(0.2),
      '+': () => this.zoom(0.5), '=': () => this.zoom(0.5), '-': () => this.zoom(2), 0: () => this.reset(),
    }[e.key];
    if (act) { act(); e.preventDefault(); e.stopPropagation(); }
  }
}

// bins puts buckets of several series together to at most `most` bins over a
// range. A bin's width is a bucket's times a power of two.
function bins(series, [from, to], most, fields) {
  let width = Math.max(...series.map((s) => s.width));
  while ((to - from) / width > most) width *= 2;
  const first = Math.floor(from / width), n = Math.floor(to / width) - first + 1;
  const out = { width, x: new Float64Array(n) };
  for (let i = 0; i < n; i++) out.x[i] = (first + i) * width;
  for (const f of Object.keys(fields)) out[f] = new Array(n).fill(fields[f] === 'sum' ? 0 : null);
  for (const s of series) {
    const most = {}; // of this series, by bin
    for (const f of Object.keys(fields)) most[f] = new Array(n).fill(null);
    const length = s[Object.keys(fields)[0]] ? s[Object.keys(fields)[0]].length : 0;
    const start = Math.max(0, Math.floor((from - s.first) / s.width) - 1);
    for (let i = start; i < length; i++) {
      // The middle: the bounds of buckets are rounded.
      const at = Math.floor((s.first + (i + 0.5) * s.width) / width) - first;
      if (at >= n) break;
      if (at < 0) continue;
      for (const f of Object.keys(fields)) {
        const v = s[f][i];
        if (fields[f] === 'sum') out[f][at] += v;
        else if (v >= 0) most[f][at] = Math.max(most[f][at] ?? 0, v);
      }
    }
    for (const f of Object.keys(fields)) {
      if (fields[f] !== 'max') continue;
      for (let i = 0; i < n; i++) if (most[f][i] !== null) out[f][i] = (out[f][i] ?? 0) + most[f][i]; // hosts add up
    }
  }
  return out;
}

const charts = []; // all that are on the page

// Chart is a uPlot on the axis' time scale.
class Chart {
  // make(range, width) returns {title, data, series, rest}.
  constructor(parent, axis, label, height, make) {
    this.axis = axis; this.height = height; this.make = make;
    this.title = h('h3', { class: 'chart-title' });
    this.box = h('div', { class: 'chart', tabindex: '0', role: 'group', 'aria-roledescription': 'chart', 'aria-label': label });
    parent.append(this.title, this.box);
    this.box.addEventListener('keydown', (e) => axis.key(e));
    this.box.addEventListener('wheel', (e) => {
      // The page scrolls unless the reader has turned to the chart.
      if (document.activeElement !== this.box && !e.ctrlKey) return;
      e.preventDefault();
      const over = this.plot.over.getBoundingClientRect();
      const at = this.plot.posToVal(e.clientX - over.left, 'x') * 1e6;
      axis.zoom(e.deltaY > 0 ? 1.25 : 0.8, at);
    }, { passive: false });
    axis.on(() => this.draw());
    charts.push(this);
    new ResizeObserver(debounce(50, () => { if (this.box.clientWidth !== this.drawn) this.draw(true); })).observe(this.box);
    this.draw(true);
  }
  draw(anew) {
    const width = this.box.clientWidth;
    if (!width) return;
    const made = this.make(this.axis.range, width);
    this.title.textContent = made.title;
    const data = [Array.from(made.x, (us) => us / 1e6), ...made.data];
    const scale = { min: this.axis.range[0] / 1e6, max: this.axis.range[1] / 1e6 };
    if (this.plot && !anew) {
      this.plot.batch(() => { this.plot.setData(data, false); this.silent = true; this.plot.setScale('x', scale); this.silent = false; this.scaleY(); });
      return;
    }
    if (this.plot) this.plot.destroy();
    this.drawn = width;
    const text = css('--muted'), line = css('--line');
    const ticks = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: '11px system-ui, sans-serif' };
    this.plot = new uPlot({
      width, height: this.height, padding: [8, 8, 0, 0],
      legend: { show: true, live: true },
      cursor: { y: false, sync: { key: 'time', setSeries: false }, drag: { x: true, y: false, setScale: false }, points: { size: 6 }, bind: { dblclick: () => () => { this.axis.reset(); return null; } } },
      tzDate: (ts) => (prefs.utc ? uPlot.tzDate(new Date(ts * 1e3), 'Etc/UTC') : new Date(ts * 1e3)),
      scales: { x: { time: true, min: scale.min, max: scale.max }, y: { range: (u, lo, hi) => [0, Math.max((hi || 0) * 1.08, 1)] } },
      axes: [
        { ...ticks, values: (u, splits) => labels(splits), space: 90 },
        { ...ticks, size: 56, space: 22, values: (u, splits) => splits.map((v) => (Number.isInteger(v) ? short(v) : '')) },
      ],
      series: [{ label: 'time', value: (u, v) => (v === null ? '' : clock(v * 1e6, 3)) }, ...made.series],
      hooks: {
        setSelect: [(u) => {
          if (u.select.width < 3) return;
          const a = u.posToVal(u.select.left, 'x') * 1e6, b = u.posToVal(u.select.left + u.select.width, 'x') * 1e6;
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          if (u.cursor.event) this.axis.set(a, b); // not where the mouse was on another chart
        }],
      },
    }, data, this.box);
  }
  scaleY() { this.plot.setScale('y', { min: 0, max: 1.08 * Math.max(1, ...this.plot.data.slice(1).map((s) => s.reduce((m, v) => Math.max(m, v ?? 0), 0))) }); }
}

// labels of the time axis: as fine as the distance between them needs, with
// the date where it changes.
function labels(splits) {
  const step = splits.length > 1 ? splits[1] - splits[0] : 1;
  let day = '';
  return splits.map((s) => {
    const us = Math.round(s * 1e6), d = date(us);
    const t = step >= 86400 ? '' : step >= 60 ? clock(us).slice(0, 5) : step >= 1 ? clock(us) : clock(us, step >= 0.1 ? 1 : 3);
    const out = d === day ? t : (t ? t + '\n' : '') + d;
    day = d;
    return out;
  });
}

function short(v) {
  if (v >= 1e6) return +(v / 1e6).toFixed(1) + 'M';
  if (v >= 1e4) return +(v / 1e3).toFixed(1) + 'k';
  return String(v);
}

const paint = (name, more) => ({ stroke: () => css(name), ...more });
const tint = (name) => () => css(name) + '33';
const bars = () => uPlot.paths.bars({ size: [0.95, 40], align: 1 });
// filled bars: outlines would be all that is seen of many.
const block = (name) => ({ stroke: () => css(name), width: 0, fill: () => css(name) + 'b0', paths: bars(), points: { show: false }, value: count });
const area = (name) => ({ ...paint(name), fill: tint(name), width: 1.5, paths: stepped(), points: { show: false }, value: count });
const outline = (name, more) => ({ ...paint(name), width: 1.5, paths: stepped(), points: { show: false }, value: count, ...more });
// per names the width of a bin.
const per = (us) => 'per ' + (us < 1e6 ? +(us / 1e3).toFixed(3) + ' ms' : us < 120e6 ? us / 1e6 + ' s' : duration(us));
const stepped = () => uPlot.paths.stepped({ align: 1 });
const count = (u, v) => (v === null || v === undefined ? '–' : number(v));

// drawTime fills the section about time.
function drawTime(d, axis, jump) {
  const shown = () => (axis.host < 0 ? d.hosts : [d.hosts[axis.host]]).filter((s) => s.events && s.events.length);
  const of = (range, width, fields) => {
    const some = shown();
    if (some.length) return bins(some, range, Math.max(20, width / 4), fields);
    return { width: 1e6, x: [], ...Object.fromEntries(Object.keys(fields).map((f) => [f, []])) };
  };
  const keys = '. Arrow keys move, plus and minus zoom, zero shows all.';
  const box = $('charts');
  new Chart(box, axis, 'Connections over time' + keys, 160, (range, width) => {
    const b = of(range, width, { opened: 'sum', closed: 'sum', wrong: 'sum' });
    return {
      title: 'Connections ' + per(b.width), x: b.x, data: [b.wrong, b.closed, b.opened],
      series: [{ label: 'went wrong', ...block('--error') }, { label: 'closed', ...outline('--muted', { width: 1 }) }, { label: 'opened', ...outline('--ok') }],
    };
  });
  if (!d.raw) return drawLanes(d, axis, jump);
  new Chart(box, axis, 'Connections that existed' + keys, 110, (range, width) => {
    const b = of(range, width, { live: 'max' });
    return { title: 'Connections that existed, the most', x: b.x, data: [b.live], series: [{ label: 'existed', ...area('--accent') }] };
  });
  new Chart(box, axis, 'Events over time' + keys, 110, (range, width) => {
    const b = of(range, width, { events: 'sum' });
    return { title: 'Events of the kernel ' + per(b.width), x: b.x, data: [b.events], series: [{ label: 'events', ...block('--accent') }] };
  });
  drawLanes(d, axis, jump);
}

// carry fills holes with what was known before them, up to a time.
function carry(values, x, until) {
  let last = null;
  return values.map((v, i) => { if (v !== null) last = v; return v !== null ? v : x[i] <= until ? last : null; });
}

// drawLanes shows when each cause held, on the same scale as the charts.
function drawLanes(d, axis, jump) {
  const most = 12, box = $('lanes');
  if (!d.verdicts.length) return;
  const lanes = [];
  const draw = () => {
    const [a, b] = axis.range;
    for (const { v, bar, lane } of lanes) {
      const from = Math.max(0, (v.first - a) / (b - a)), to = Math.min(1, (v.last - a) / (b - a));
      bar.hidden = to < 0 || from > 1;
      bar.style.left = (from * 100) + '%';
      bar.style.width = Math.max(0, (to - from) * 100) + '%';
      lane.hidden = axis.host >= 0 && v.host !== axis.host;
    }
  };
  box.append(h('h3', { class: 'chart-title' }, 'Causes'));
  d.verdicts.slice(0, most).forEach((v, i) => {
    const bar = h('span', { class: 'bar ' + severityNames[v.severity] });
    const lane = h('button', {
      type: 'button', class: 'lane', title: `${v.about}: ${instant(v.first)} to ${instant(v.last)}`,
      'aria-label': `${v.code}, ${v.about}, ${number(v.count)} times, from ${instant(v.first)} to ${instant(v.last)}: go to the cause`,
      on: { click: () => jump('cause-' + i) },
    }, h('span', { class: 'lane-name' }, v.code, ' ', h('span', { class: 'dim' }, number(v.count) + '×' + (d.hosts.length > 1 ? ' on ' + d.hosts[v.host].name : ''))), h('span', { class: 'track' }, bar));
    lanes.push({ v, bar, lane });
    box.append(lane);
  });
  if (d.verdicts.length > most) box.append(h('p', { class: 'dim hint' }, `${d.verdicts.length - most} further causes are in the list above.`));
  axis.on(draw);
  draw();
}
