// Accept queues: a list of listeners, and the chart of the one chosen.

function drawQueues(d, axis) {
  if (!d.listeners.length) return;
  $('queues').hidden = false;
  $('queues-link').hidden = false;
  let chosen = 0, chart = null;
  const several = d.hosts.length > 1;
  const rows = d.listeners.map((l, i) => {
    const full = l.most > l.limit || l.drops > 0;
    const pick = h('button', { type: 'button', class: 'link', on: { click: () => choose(i) } }, l.name);
    return h('tr', { class: full ? 'warn' : '' },
      h('th', { scope: 'row' }, pick, several ? h('span', { class: 'dim' }, ' on ' + d.hosts[l.host].name) : ''),
      h('td', {}, l.process),
      h('td', { class: 'num' }, `${number(l.most)} of ${number(l.limit)}`),
      h('td', {}, gauge(l)),
      h('td', { class: 'num' }, l.drops ? number(l.drops) : ''));
  });
  const head = ['listener', 'process', 'most, of limit', '', 'refused'].map((t, i) => h('th', { scope: 'col', class: i === 2 || i === 4 ? 'num' : '' }, t));
  $('queue-list').append(h('div', { class: 'scroll short' }, h('table', { class: 'queues' }, h('thead', {}, h('tr', {}, ...head)), h('tbody', {}, ...rows))));

  function choose(i) {
    chosen = i;
    rows.forEach((r, k) => { r.classList.toggle('chosen', k === i); r.querySelector('button').setAttribute('aria-pressed', k === i); });
    if (chart) chart.draw(true);
  }
  chart = new Chart($('queue-chart'), axis, 'Accept queue of the chosen listener over time', 170, (range, width) => {
    const l = d.listeners[chosen];
    const b = l.len ? bins([{ first: l.first, width: l.width, len: l.len, limits: l.limits, dropped: l.dropped }], range, Math.max(20, width / 5), { len: 'max', limits: 'max', dropped: 'sum' }) : { x: [], len: [], limits: [], dropped: [], width: 1e6 };
    return {
      title: `Accept queue of ${l.name}, the most per ${duration(b.width)}`, x: b.x,
      data: [carry(b.len), carry(b.limits), b.dropped.map((v) => v || null)],
      series: [
        { label: 'waiting', ...paint('--accent'), fill: tint('--accent'), width: 1.5, paths: stepped(), points: { show: false }, value: count },
        { label: 'limit', ...paint('--error'), width: 1.5, dash: [6, 4], paths: stepped(), points: { show: false }, value: count },
        { label: 'refused', ...paint('--warning'), fill: tint('--warning'), paths: bars(), points: { show: false }, value: count },
      ],
    };
  });
  choose(0);
}

// gauge shows how much of the limit was taken.
function gauge(l) {
  const part = l.limit ? Math.min(1, l.most / l.limit) : l.most ? 1 : 0;
  return svg('svg', { class: 'gauge', viewBox: '0 0 100 8', preserveAspectRatio: 'none', role: 'img', 'aria-label': Math.round(part * 100) + ' percent of the limit' },
    svg('rect', { class: 'gauge-all', width: 100, height: 8, rx: 2 }),
    svg('rect', { class: l.most > l.limit || l.drops ? 'gauge-full' : 'gauge-part', width: part * 100, height: 8, rx: 2 }));
}
