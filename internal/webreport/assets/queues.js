// Accept queues: a list of listeners, and the chart of the one chosen.

function drawQueues(d, axis) {
  if (!d.listeners.length) return;
  $('queues').hidden = false;
  $('queues-link').hidden = false;
  let chosen = 0;
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

  const drawn = [];
  const choose = (i) => {
    chosen = i;
    rows.forEach((r, k) => { r.classList.toggle('chosen', k === i); r.querySelector('button').setAttribute('aria-pressed', k === i); });
    for (const c of drawn) c.draw();
  };
  const of = (range, width) => {
    const l = d.listeners[chosen];
    if (!l.len) return { x: [], len: [], limits: [], dropped: [], width: 1e6 };
    return bins([{ first: l.first, width: l.width, len: l.len, limits: l.limits, dropped: l.dropped }], range, Math.max(20, width / 4), { len: 'max', limits: 'max', dropped: 'sum' });
  };
  drawn.push(new Chart($('queue-chart'), axis, 'Accept queue of the chosen listener over time', 160, (range, width) => {
    const b = of(range, width), l = d.listeners[chosen], until = d.runs[l.run].to;
    return {
      title: `Waiting for accept() on ${l.name}, the most ${per(b.width)}`, x: b.x,
      data: [carry(b.len, b.x, until), carry(b.limits, b.x, until)],
      series: [{ label: 'waiting', ...area('--accent') }, { label: 'limit', ...outline('--error', { dash: [6, 4] }) }],
    };
  }));
  if (d.listeners.some((l) => l.drops)) {
    drawn.push(new Chart($('queue-chart'), axis, 'What the chosen listener refused over time', 115, (range, width) => {
      const b = of(range, width);
      return { title: `SYNs and final ACKs refused ${per(b.width)}`, x: b.x, data: [b.dropped], series: [{ label: 'refused', ...block('--error') }] };
    }));
  }
  choose(0);
}

// gauge shows how much of the limit was taken.
function gauge(l) {
  const part = l.limit ? Math.min(1, l.most / l.limit) : l.most ? 1 : 0;
  return svg('svg', { class: 'gauge', viewBox: '0 0 100 8', preserveAspectRatio: 'none', role: 'img', 'aria-label': Math.round(part * 100) + ' percent of the limit' },
    svg('rect', { class: 'gauge-all', width: 100, height: 8, rx: 2 }),
    svg('rect', { class: l.most > l.limit || l.drops ? 'gauge-full' : 'gauge-part', width: part * 100, height: 8, rx: 2 }));
}
