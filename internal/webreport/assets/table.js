// The table of connections: only the rows in sight are in the document, so
// that a hundred thousand are no burden.

const columns = [
  { id: 'at', name: 'began', sort: (d) => (i) => d.conns.at[i] },
  { id: 'took', name: 'took', sort: (d) => (i) => d.conns.took[i], num: true },
  { id: 'route', name: 'client → server', sort: (d) => byWord(d, (i) => d.conns.remote[i]) },
  { id: 'owner', name: 'process', sort: (d) => byWord(d, (i) => d.conns.owner[i]) },
  { id: 'state', name: 'state', sort: (d) => byWord(d, (i) => d.conns.state[i]) },
  { id: 'codes', name: 'verdicts', sort: (d) => { const w = byWord(d, (i) => d.conns.codes[i]); return (i) => (d.conns.codes[i] === d.noCodes ? Infinity : w(i)); } },
  { id: 'story', name: 'story', sort: (d) => byWord(d, (i) => d.conns.story[i]) },
];

// byWord sorts by what a string's rank is among all.
function byWord(d, of) {
  if (!d.ranks) {
    const order = d.words.map((_, i) => i).sort((a, b) => (d.words[a] < d.words[b] ? -1 : d.words[a] > d.words[b] ? 1 : 0));
    d.ranks = new Uint32Array(d.words.length);
    order.forEach((w, rank) => { d.ranks[w] = rank; });
  }
  return (i) => d.ranks[of(i)];
}

class Table {
  constructor(d, axis, grid) {
    this.d = d; this.axis = axis; this.grid = grid;
    this.filter = { terms: [], code: '', process: '', port: '', state: '', host: -1, wrong: false };
    this.sort = { column: columns[0], down: false };
    this.rows = []; // numbers of connections, as shown
    this.active = 0; // place in rows
    this.open = new Map(); // connection -> {element, height}
    this.pool = new Map(); // place -> element
    d.noCodes = d.words.indexOf('');

    this.head = h('div', { class: 'tr head', role: 'row', 'aria-rowindex': '1' }, ...columns.map((c) => {
      const b = h('button', { type: 'button', on: { click: () => this.sortBy(c) } }, c.name);
      return h('div', { class: 'td ' + c.id, role: 'columnheader', 'data-column': c.id }, b);
    }));
    this.space = h('div', { class: 'space' });
    this.view = h('div', { class: 'view' }, this.space);
    this.none = h('p', { class: 'empty', hidden: true }, 'No connection matches.');
    grid.append(h('div', { role: 'rowgroup' }, this.head), this.view, this.none);
    grid.setAttribute('aria-colcount', columns.length);
    this.view.setAttribute('role', 'rowgroup');
    this.view.addEventListener('scroll', () => this.schedule(), { passive: true });
    this.narrow = matchMedia('(max-width: 800px)');
    this.narrow.addEventListener('change', () => { this.measure(); this.layout(); });
    new ResizeObserver(() => this.schedule()).observe(this.view);
    this.sizes = new ResizeObserver((list) => {
      let changed = false;
      for (const e of list) {
        const o = this.open.get(Number(e.target.dataset.row));
        const height = e.borderBoxSize ? e.borderBoxSize[0].blockSize : e.target.offsetHeight;
        if (o && height && Math.abs(o.height - height) > 0.5) { o.height = height; changed = true; }
      }
      if (changed) this.layout();
    });
    grid.addEventListener('keydown', (e) => this.key(e));
    this.measure();
  }

  measure() { this.rowHeight = this.narrow.matches ? 74 : 32; }

  // Filtering: terms are looked for in the dictionary first, so that a row is
  // a look-up for each column.
  apply() {
    const { d, filter, axis } = this, c = d.conns, n = c.n;
    const hits = filter.terms.map((t) => {
      const hit = new Uint8Array(d.words.length);
      for (let w = 0; w < hit.length; w++) if (d.lower[w].includes(t)) hit[w] = 1;
      return hit;
    });
    const code = filter.code, withCode = code && new Uint8Array(d.words.length);
    if (code) d.words.forEach((w, i) => { if (w.split(',').includes(code)) withCode[i] = 1; });
    const withPort = filter.port && new Uint8Array(d.words.length);
    if (filter.port) d.words.forEach((w, i) => { if (w.endsWith(':' + filter.port)) withPort[i] = 1; });
    const process = filter.process, ofProcess = process && d.words.map((w) => comm(w) === process);
    const state = filter.state ? d.words.indexOf(filter.state) : -1;
    const [from, to] = axis.range, zoomed = axis.zoomed;
    const rows = [];
    for (let i = 0; i < n; i++) {
      const flags = c.flags[i];
      if (flags & Flag.hidden) continue;
      if (filter.wrong && !(flags & Flag.wrong)) continue;
      if (filter.host >= 0 && hostOf(d, i) !== filter.host) continue;
      if (state >= 0 && c.state[i] !== state) continue;
      if (zoomed && (c.at[i] > to || c.end[i] < from)) continue;
      if (withCode && !withCode[c.codes[i]]) continue;
      if (withPort && !withPort[c.local[i]] && !withPort[c.remote[i]]) continue;
      if (ofProcess && !ofProcess[c.owner[i]]) continue;
      let all = true;
      for (let k = 0; k < hits.length && all; k++) {
        const hit = hits[k];
        all = hit[c.local[i]] || hit[c.remote[i]] || hit[c.owner[i]] || hit[c.story[i]] || hit[c.codes[i]] || hit[c.state[i]] || hit[c.listen[i]] || hit[c.cgroup[i]] || c.id[i].includes(filter.terms[k]);
      }
      if (all) rows.push(i);
    }
    const was = this.rows[this.active];
    this.rows = rows;
    this.order();
    this.active = Math.max(0, this.rows.indexOf(was));
    this.changed();
  }

  order() {
    const of = this.sort.column.sort(this.d), sign = this.sort.down ? -1 : 1;
    const keys = new Float64Array(this.d.conns.n);
    for (const i of this.rows) keys[i] = of(i);
    // The same: in the order of time.
    this.rows.sort((a, b) => (keys[a] < keys[b] ? -sign : keys[a] > keys[b] ? sign : a - b));
    for (const cell of this.head.children) {
      const mine = cell.dataset.column === this.sort.column.id;
      if (mine) cell.setAttribute('aria-sort', this.sort.down ? 'descending' : 'ascending');
      else cell.removeAttribute('aria-sort');
    }
  }

  sortBy(column) {
    this.sort = { column, down: this.sort.column === column ? !this.sort.down : column.id === 'took' };
    this.order();
    this.active = 0;
    this.changed();
  }

  changed() {
    if (this.open.size) {
      const shown = new Set(this.rows);
      for (const i of [...this.open.keys()]) if (!shown.has(i)) this.close(i);
    }
    this.grid.setAttribute('aria-rowcount', this.rows.length + 1);
    this.none.hidden = this.rows.length > 0;
    this.view.hidden = this.rows.length === 0;
    const total = this.d.rowOf.size;
    $('matches').textContent = (this.rows.length === total ? number(total) : `${number(this.rows.length)} of ${number(total)}`) + (this.axis.zoomed ? ', within the zoomed time' : '');
    this.layout();
  }

  // opened lists the places of open rows in order.
  opened() {
    const places = [];
    if (this.open.size) {
      this.rows.forEach((i, place) => {
        const o = this.open.get(i);
        if (o) { o.place = place; places.push(place); }
      });
    }
    return places;
  }

  layout() {
    this.places = this.opened();
    let height = this.rows.length * this.rowHeight;
    for (const o of this.open.values()) height += o.height;
    this.space.style.height = height + 'px';
    this.view.style.height = Math.min(height, Math.max(260, Math.round(innerHeight * 0.72))) + 'px';
    for (const el of this.pool.values()) el.remove();
    this.pool.clear();
    this.draw();
  }

  top(place) {
    let y = place * this.rowHeight;
    for (const p of this.places) if (p < place) y += this.open.get(this.rows[p]).height;
    return y;
  }

  at(y) {
    let lo = 0, hi = this.rows.length - 1;
    while (lo < hi) { const mid = (lo + hi + 1) >> 1; if (this.top(mid) <= y) lo = mid; else hi = mid - 1; }
    return lo;
  }

  schedule() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() {
    if (!this.rows.length) { this.grid.removeAttribute('aria-activedescendant'); return; }
    const y = this.view.scrollTop, from = Math.max(0, this.at(y) - 4), to = Math.min(this.rows.length - 1, this.at(y + this.view.clientHeight) + 4);
    for (const [place, el] of this.pool) {
      if (place < from || place > to) { el.remove(); this.pool.delete(place); }
    }
    for (let place = from; place <= to; place++) {
      let el = this.pool.get(place);
      if (!el) { el = this.row(place); this.pool.set(place, el); this.space.append(el); }
      el.classList.toggle('active', place === this.active);
      el.setAttribute('aria-selected', place === this.active);
    }
    for (const o of this.open.values()) {
      o.element.style.top = this.top(o.place) + this.rowHeight + 'px';
      if (!o.element.isConnected) { this.space.append(o.element); this.sizes.observe(o.element); }
    }
    if (this.pool.has(this.active)) this.grid.setAttribute('aria-activedescendant', 'row-' + this.rows[this.active]);
    else this.grid.removeAttribute('aria-activedescendant');
  }

  row(place) {
    const i = this.rows[place];
    const el = h('div', {
      class: 'tr' + (this.open.has(i) ? ' open' : ''), role: 'row', id: 'row-' + i, 'aria-rowindex': place + 2, 'aria-expanded': this.open.has(i),
      on: { click: () => { if (String(getSelection())) return; this.active = place; this.toggle(i); } },
    }, ...this.cells(i));
    el.style.top = this.top(place) + 'px';
    return el;
  }

  cells(i) {
    const { d } = this, c = d.conns, flags = c.flags[i];
    const mark = flags & Flag.wrong ? ['wrong', '●', 'went wrong'] : flags & Flag.incomplete ? ['part', '◐', 'incomplete'] : ['well', '○', 'healthy'];
    const day = date(c.at[i]) === date(d.from) ? '' : date(c.at[i]).slice(5) + ' ';
    const cell = (id, ...content) => h('div', { class: 'td ' + id, role: 'gridcell', title: id === 'at' ? instant(c.at[i]) : content.map((x) => (x.textContent === undefined ? x : x.textContent)).join(' ') }, ...content);
    const codes = d.words[c.codes[i]];
    return [
      cell('at', h('span', { class: 'mark ' + mark[0], title: mark[2], 'aria-label': mark[2], role: 'img' }, mark[1]), ' ', (flags & Flag.opened ? '' : '≤ ') + day + clock(c.at[i], 3)),
      cell('took', duration(c.took[i])),
      cell('route', h('bdi', {}, route(d, i))),
      cell('owner', h('bdi', {}, d.words[c.owner[i]])),
      cell('state', d.words[c.state[i]]),
      cell('codes', ...(codes ? codes.split(',').map((code) => h('span', { class: 'code ' + severityNames[severityOf(d, code)] }, code)) : [])),
      cell('story', h('bdi', {}, d.words[c.story[i]])),
    ];
  }

  key(e) {
    if (e.target !== this.grid || e.ctrlKey || e.altKey || e.metaKey) return;
    const page = Math.max(1, Math.floor(this.view.clientHeight / this.rowHeight) - 1);
    const go = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.rows.length, End: this.rows.length }[e.key];
    if (go) {
      const last = this.rows.length - 1;
      this.active = Math.min(last, Math.max(0, this.active + go));
      this.reveal(this.active);
    } else if (e.key === 'Enter' || e.key === ' ') {
      if (this.rows.length) this.toggle(this.rows[this.active]);
    } else if (e.key === 'ArrowRight') {
      if (this.rows.length && !this.open.has(this.rows[this.active])) this.toggle(this.rows[this.active]);
    } else if (e.key === 'ArrowLeft' || e.key === 'Escape') {
      if (this.open.has(this.rows[this.active])) this.toggle(this.rows[this.active]);
    } else return;
    e.preventDefault();
    e.stopPropagation();
  }

  reveal(place) {
    const y = this.top(place), { scrollTop, clientHeight } = this.view;
    const o = this.open.get(this.rows[place]);
    const height = this.rowHeight + (o ? Math.min(o.height, clientHeight - this.rowHeight) : 0);
    if (y < scrollTop) this.view.scrollTop = y;
    else if (y + height > scrollTop + clientHeight) this.view.scrollTop = y + height - clientHeight;
    this.draw();
  }

  toggle(i) {
    if (this.open.has(i)) this.close(i);
    else {
      if (this.open.size >= 20) this.close(this.open.keys().next().value);
      const element = h('div', { class: 'detail', 'data-row': i, role: 'row' }, h('div', { role: 'gridcell', 'aria-colspan': columns.length }, this.detail(i)));
      element.addEventListener('click', (e) => e.stopPropagation());
      this.open.set(i, { element, height: 300 });
      this.places = this.opened();
      element.style.top = this.top(this.rows.indexOf(i)) + this.rowHeight + 'px';
      this.space.append(element);
      this.open.get(i).height = element.offsetHeight;
      this.sizes.observe(element);
    }
    this.layout();
    this.reveal(this.active);
  }

  close(i) {
    const o = this.open.get(i);
    this.sizes.unobserve(o.element);
    o.element.remove();
    this.open.delete(i);
  }

  // show opens a connection, whatever the filter: it gives way.
  show(i, clear) {
    if (!this.rows.includes(i)) clear();
    this.active = this.rows.indexOf(i);
    if (!this.open.has(i)) this.toggle(i);
    this.view.scrollTop = this.top(this.active);
    this.draw();
    this.grid.focus({ preventScroll: true });
    $('connections').scrollIntoView({ block: 'start' });
  }

  detail(i) {
    const { d } = this, c = d.conns, w = (col) => d.words[c[col][i]];
    const run = d.runs[c.run[i]], flags = c.flags[i];
    const facts = [
      ['process', w('owner') ? w('owner') + (w('source') !== 'unknown' ? ` (known by ${w('source')})` : '') : 'unknown'],
      ['role', w('role')],
      ['listener', w('listen')],
      ['began', (flags & Flag.opened ? '' : 'before ') + instant(c.at[i])],
      ['took', c.took[i] >= 0 ? duration(c.took[i]) : 'not known'],
      ['ended by', w('by')],
      ['state', w('state')],
      ['sent, received', `${bytes(c.sent[i])}, ${bytes(c.recv[i])}`],
      ['sent again', c.retrans[i] ? `${number(c.retrans[i])} segments` : ''],
      ['round trip', c.srtt[i] ? duration(c.srtt[i]) : ''],
      ['cgroup', w('cgroup')],
      ['netns', (run.netns && run.netns[c.netns[i]] ? run.netns[c.netns[i]] + ' ' : '') + c.netns[i]],
      ['host', d.hosts.length > 1 ? d.hosts[run.host].name : ''],
      ['ID', c.id[i]],
    ].filter(([, v]) => v);
    const notes = [];
    if (flags & Flag.incomplete) notes.push('Part of this timeline was not seen: what is missing here may have happened.');
    if (flags & Flag.shortened) notes.push('The middle of a long timeline is left out.');
    const codes = w('codes');
    return h('div', { class: 'detail-body' },
      h('p', { class: 'story' }, h('bdi', {}, w('story'))),
      codes ? h('p', { class: 'codes' }, ...codes.split(',').flatMap((code) => [h('button', { type: 'button', class: 'code ' + severityNames[severityOf(d, code)], title: 'to the cause', on: { click: () => this.toCause(code, i) } }, code), ' '])) : '',
      ...notes.map((n) => h('p', { class: 'note' }, n)),
      h('dl', { class: 'facts' }, ...facts.map(([k, v]) => h('div', {}, h('dt', {}, k), h('dd', {}, h('bdi', {}, v))))),
      ladder(d, i));
  }

  // toCause goes to the verdict of this code that names the connection, else
  // to the first of the code.
  toCause(code, i) {
    const { d } = this, c = d.conns;
    let found = d.verdicts.findIndex((v) => v.code === code && v.run === c.run[i] && v.examples.includes(c.id[i]));
    if (found < 0) found = d.verdicts.findIndex((v) => v.code === code && v.run === c.run[i]);
    if (found < 0) found = d.verdicts.findIndex((v) => v.code === code);
    if (found >= 0) this.jump('cause-' + found);
  }

  // plain lists rows for paper.
  plain(most) {
    const rows = this.rows.slice(0, most).map((i) => h('div', { class: 'tr' }, ...this.cells(i)));
    const left = this.rows.length - rows.length;
    return [...rows, left > 0 ? h('p', {}, `… and ${number(left)} more.`) : ''];
  }
}

// comm is the name of a process without its number.
function comm(owner) {
  const m = /^(.*?)(?:\[\d+\])?(?: in .*)?$/.exec(owner);
  return m ? m[1] : owner;
}
