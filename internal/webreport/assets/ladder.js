// The ladder of one connection: a lane for each end, arrows for segments whose
// sending or arrival was seen, and texts beside them.

// segment tells what an entry says went over the wire: {out, label, kind,
// lost}, or null.
function segment(e, server) {
  const t = e.text;
  switch (e.event) {
    case 'syn-sent': return { out: true, label: 'SYN', kind: 'syn' };
    case 'syn-retransmitted': return { out: true, label: 'SYN again', kind: 'syn' };
    case 'syn-received': return { out: false, label: 'SYN', kind: 'syn' };
    case 'syn-ack-sent': return { out: true, label: 'SYN-ACK', kind: 'syn' };
    case 'syn-ack-retransmitted': return { out: true, label: 'SYN-ACK again', kind: 'syn' };
    case 'syn-ack-received': return { out: false, label: 'SYN-ACK', kind: 'syn' };
    case 'ack-received': return { out: false, label: 'ACK', kind: 'ack' };
    case 'established': return server ? { out: false, label: 'ACK', kind: 'ack' } : { out: false, label: 'SYN-ACK', kind: 'syn' };
    case 'request-dropped': return { out: false, label: t.startsWith('SYN') ? 'SYN' : 'ACK', kind: t.startsWith('SYN') ? 'syn' : 'ack', lost: true };
    case 'first-data-sent': return { out: true, label: 'data', kind: 'data' };
    case 'first-data-received': return { out: false, label: 'data', kind: 'data' };
    case 'retransmitted': return { out: true, label: 'data again', kind: 'again' };
    case 'keepalive-probe': return { out: true, label: 'keepalive', kind: 'ack' };
    case 'zero-window': return { out: true, label: 'window probe', kind: 'ack' };
    case 'fin-sent': return { out: true, label: 'FIN', kind: 'fin' };
    case 'fin-received': return { out: false, label: 'FIN', kind: 'fin' };
    case 'rst-sent': return { out: true, label: 'RST', kind: 'rst' };
    case 'rst-received': return t.startsWith('RST') ? { out: false, label: 'RST', kind: 'rst' } : null;
    case 'dropped':
      if (t.startsWith('segment to be sent')) return { out: true, label: 'segment', kind: 'again', lost: true };
      if (t.startsWith('segment received')) return { out: false, label: 'segment', kind: 'again', lost: true };
  }
  return null;
}

// match finds for each segment that was sent where it arrived at the other end.
function match(lines) {
  const slack = 50, most = 10e6; // µs: how far a time may be off, and how long a segment travels
  for (let i = 0; i < lines.length; i++) {
    const a = lines[i];
    if (!a.segment || !a.segment.out || a.segment.lost) continue;
    const name = a.segment.label.replace(' again', '');
    for (let j = 0; j < lines.length; j++) {
      const b = lines[j];
      if (b.at > a.at + most) break;
      if (b.side === a.side || !b.segment || b.segment.out || b.from || b.at < a.at - slack || b.segment.label !== name) continue;
      a.to = b;
      b.from = a;
      break;
    }
  }
}

// ladder draws connection i; the texts stand in a list, and the arrows are laid
// over it once it has its size.
function ladder(d, i) {
  const c = d.conns, peer = c.peer[i];
  const mine = d.words[c.role[i]] === 'server' ? 1 : 0; // lane of this end
  const known = d.words[c.role[i]] !== 'unknown';
  const lines = timeline(d, i).map((e) => ({ ...e, side: mine }));
  if (peer >= 0) lines.push(...timeline(d, peer).map((e) => ({ ...e, side: 1 - mine })));
  lines.forEach((l, k) => { l.k = k; });
  lines.sort((a, b) => a.at - b.at || a.side - b.side || a.k - b.k);
  for (const l of lines) l.segment = segment(l, known && l.side === 1);
  match(lines);

  const names = known ? ['client', 'server'] : ['this end', 'other end'];
  const end = (side) => {
    const here = side === mine, row = here ? i : peer;
    const owner = row >= 0 ? d.words[c.owner[row]] : '';
    const addr = here ? d.words[c.local[i]] : d.words[c.remote[i]];
    return h('span', { class: 'end' }, h('strong', {}, names[side]), ' ', h('bdi', {}, addr || 'address unknown'), owner ? ' · ' + owner : '', row < 0 ? h('span', { class: 'dim' }, ' not traced') : '');
  };
  const start = lines.length ? lines[0].at : 0;
  const seconds = lines.length && lines[lines.length - 1].at - start >= 100e6;
  const when = (at) => (seconds ? ((at - start) / 1e6).toFixed(3) + ' s' : ((at - start) / 1e3).toFixed(3) + ' ms');

  const rows = [];
  let last = start;
  const list = h('ol', { class: 'steps', 'aria-label': 'Timeline' });
  for (const l of lines) {
    if (l.at - last >= 200000) list.append(h('li', { class: 'gap', 'aria-hidden': 'true' }, h('span', { class: 'gap-text' }, duration(l.at - last) + ' later')));
    last = l.at;
    const row = h('li', { class: 'step ' + (l.segment ? l.segment.kind : 'here') },
      h('span', { class: 'at', title: instant(l.at) }, when(l.at)),
      h('span', { class: 'rungs', 'aria-hidden': 'true' }),
      h('span', { class: 'text' }, peer >= 0 || !known ? h('span', { class: 'who' }, names[l.side]) : '', h('bdi', {}, l.text || l.event)));
    l.row = row;
    rows.push(l);
    list.append(row);
  }
  const drawing = svg('svg', { class: 'rungs-drawing', 'aria-hidden': 'true' });
  const body = h('div', { class: 'ladder-body' }, list, drawing);
  const box = h('div', { class: 'ladder' }, h('div', { class: 'ends' }, end(0), end(1)), body);
  if (!lines.length) list.append(h('li', { class: 'dim' }, 'Nothing of its timeline is known.'));
  const draw = () => drawRungs(rows, drawing, body);
  new ResizeObserver(draw).observe(body);
  return box;
}

function drawRungs(rows, drawing, body) {
  drawing.replaceChildren();
  if (!rows.length || !body.clientWidth) return;
  const base = body.getBoundingClientRect();
  const cell = rows[0].row.querySelector('.rungs').getBoundingClientRect();
  const left = cell.left - base.left + 10, right = cell.right - base.left - 10;
  const x = [left, right];
  drawing.setAttribute('width', body.clientWidth);
  drawing.setAttribute('height', body.clientHeight);
  const y = (l) => { const r = l.row.getBoundingClientRect(); return r.top - base.top + Math.min(r.height / 2, 16) + 3; };
  const total = body.clientHeight;
  for (const at of x) drawing.append(svg('line', { class: 'life', x1: at, x2: at, y1: 0, y2: total }));
  for (const l of rows) {
    const s = l.segment, mid = y(l);
    if (l.from) { drawing.append(svg('circle', { class: 'dot ' + s.kind, cx: x[l.side], cy: mid, r: 2.5 })); continue; } // drawn from where it was sent
    if (!s) { drawing.append(svg('circle', { class: 'dot', cx: x[l.side], cy: mid, r: 4 })); continue; }
    const from = s.out ? l.side : 1 - l.side, to = 1 - from;
    let x1 = x[from], x2 = x[to], y1 = mid, y2 = mid;
    if (l.to) y2 = y(l.to);
    if (y2 < y1) { // the kernel told of the arrival first: no arrow goes back in time
      drawing.append(svg('circle', { class: 'dot ' + s.kind, cx: x1, cy: y1, r: 2.5 }));
      y1 = y2;
    }
    if (s.lost) { if (s.out) x2 = x1 + (x2 - x1) * 0.35; else x1 = x2 - (x2 - x1) * 0.65; }
    drawing.append(arrow(x1, y1, x2, y2, s));
    const tx = (x1 + x2) / 2, ty = (y1 + y2) / 2;
    drawing.append(svg('text', { class: 'label ' + s.kind, x: tx, y: ty - 4, 'text-anchor': 'middle' }, s.label));
  }
}

function arrow(x1, y1, x2, y2, s) {
  const g = svg('g', { class: 'arrow ' + s.kind });
  const angle = Math.atan2(y2 - y1, x2 - x1), size = 7;
  g.append(svg('line', { x1, y1, x2, y2 }));
  if (s.lost) {
    const at = s.out ? [x2, y2] : [x2 - Math.cos(angle) * 12, y2];
    for (const [a, b] of [[-4, -4], [-4, 4]]) g.append(svg('line', { class: 'cross', x1: at[0] + a, y1: at[1] + b, x2: at[0] - a, y2: at[1] - b }));
    return g;
  }
  const p = (turn) => `${x2 - size * Math.cos(angle + turn)},${y2 - size * Math.sin(angle + turn)}`;
  g.append(svg('polygon', { points: `${x2},${y2} ${p(0.45)} ${p(-0.45)}` }));
  return g;
}
