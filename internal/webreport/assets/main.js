// Putting it together.

const root = document.documentElement;

// Preferences are kept where the browser allows it.
function remembered(name, value) {
  try {
    if (value === undefined) return localStorage.getItem('tcptrace-' + name);
    localStorage.setItem('tcptrace-' + name, value);
  } catch { /* some browsers keep nothing for files */ }
  return value;
}

function setTheme(theme) {
  if (theme === 'auto') delete root.dataset.theme;
  else root.dataset.theme = theme;
  $('theme').textContent = 'Theme: ' + theme;
  for (const c of charts) c.draw(true);
}

function nextTheme() {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const order = dark ? ['auto', 'light', 'dark'] : ['auto', 'dark', 'light'];
  const next = order[(order.indexOf(root.dataset.theme || 'auto') + 1) % 3];
  remembered('theme', next);
  setTheme(next);
}

function showTimes() {
  $('zone').textContent = prefs.utc ? 'UTC' : zone();
  $('zone').setAttribute('aria-pressed', !prefs.utc);
  $('zone').setAttribute('aria-label', 'Times in ' + zone() + ': change');
  for (const t of document.querySelectorAll('time')) {
    const m = /\.(\d+)Z$/.exec(t.dateTime), us = Math.floor(Date.parse(t.dateTime) / 1000) * 1e6 + (m ? Number(m[1].padEnd(6, '0').slice(0, 6)) : 0);
    t.textContent = instant(us);
    const was = prefs.utc;
    prefs.utc = !was;
    t.title = instant(us);
    prefs.utc = was;
  }
  // Both at the head, unless they are the same.
  const [from, to] = document.querySelectorAll('.when time');
  const other = from && !from.title.endsWith(from.textContent.slice(11)) ? `${prefs.utc ? 'local time' : 'UTC'}: ${from.title} – ${to.title}` : '';
  $('zone-note').textContent = other;
}

// micro reads a time from an attribute.
const micro = (text) => (text ? Date.parse(text) * 1000 : 0);

async function main() {
  if (typeof DecompressionStream === 'undefined') return; // the status says what is needed
  $('status').textContent = 'Unpacking…';
  let d;
  try {
    d = await load();
  } catch (err) {
    $('status').textContent = 'The data of this page is damaged: ' + err.message + '. The time axis and the connections cannot be shown.';
    $('status').className = 'status bad';
    return;
  }
  d.lower = d.words.map((w) => w.toLowerCase());
  document.querySelectorAll('.needs-script, .tools').forEach((el) => { el.hidden = false; });
  $('queues-link').hidden = true;
  $('time').hidden = false;
  $('connections').hidden = false;
  $('status').textContent = '';
  $('status').hidden = true;
  setTheme(remembered('theme') || 'auto');

  const axis = new Axis(d.from, d.to);
  const jump = (id) => {
    const el = $(id);
    el.open = true;
    el.scrollIntoView({ block: 'start' });
    el.querySelector('summary').focus({ preventScroll: true });
  };
  const table = new Table(d, axis, $('grid'));
  table.jump = jump;

  // Filters.
  const f = table.filter;
  const option = (value, text) => h('option', { value }, text);
  const choices = (id, of, any) => {
    const n = new Map();
    for (let i = 0; i < d.conns.n; i++) {
      if (d.conns.flags[i] & Flag.hidden) continue;
      for (const k of of(i)) if (k !== '') n.set(k, (n.get(k) || 0) + 1);
    }
    const list = [...n].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 500);
    $(id).append(option('', any), ...list.map(([k, v]) => option(k, `${k} (${number(v)})`)));
  };
  const c = d.conns;
  const names = new Map(); // of processes, by word
  choices('f-code', (i) => d.words[c.codes[i]].split(','), 'any');
  choices('f-process', (i) => { let s = names.get(c.owner[i]); if (s === undefined) names.set(c.owner[i], s = comm(d.words[c.owner[i]])); return [s]; }, 'any');
  choices('f-state', (i) => [d.words[c.state[i]]], 'any');
  $('f-host').append(option('-1', 'all'), ...d.hosts.map((x, i) => option(i, x.name)));
  $('f-host-label').hidden = d.hosts.length < 2;
  const read = () => {
    f.terms = $('q').value.toLowerCase().split(/\s+/).filter(Boolean);
    f.code = $('f-code').value;
    f.process = $('f-process').value;
    f.port = $('f-port').value;
    f.state = $('f-state').value;
    f.host = Number($('f-host').value);
    f.wrong = $('f-wrong').checked;
    table.apply();
    if (axis.host !== f.host) { axis.host = f.host; axis.tell(); }
  };
  const clear = () => { $('filters').reset(); axis.reset(); read(); };
  $('filters').addEventListener('submit', (e) => e.preventDefault());
  $('filters').addEventListener('change', read);
  $('filters').addEventListener('input', debounce(120, read));
  $('f-clear').addEventListener('click', clear);

  // Zoom.
  const range = () => {
    const [a, b] = axis.range;
    $('zoom-range').textContent = axis.zoomed ? `${clock(a, 3)} – ${clock(b, 3)} ${zone()} (${duration(b - a)})` : '';
    $('zoom-reset').disabled = !axis.zoomed;
  };
  axis.on(range);
  const filterByZoom = debounce(80, () => table.apply());
  axis.on(filterByZoom);
  for (const [id, act] of [['zoom-left', () => axis.move(-0.3)], ['zoom-right', () => axis.move(0.3)], ['zoom-in', () => axis.zoom(0.5)], ['zoom-out', () => axis.zoom(2)], ['zoom-reset', () => axis.reset()]]) $(id).addEventListener('click', act);
  range();

  drawTime(d, axis, jump);
  drawQueues(d, axis);
  read();

  // The causes' buttons.
  for (const b of document.querySelectorAll('button.example')) {
    b.addEventListener('click', () => { const i = d.rowOf.get(b.dataset.run + '/' + b.dataset.id); if (i !== undefined) table.show(i, clear); });
  }
  for (const b of document.querySelectorAll('button.only-code')) {
    b.addEventListener('click', () => { clear(); $('f-code').value = b.dataset.code; read(); $('connections').scrollIntoView(); $('grid').focus({ preventScroll: true }); });
    b.hidden = ![...$('f-code').options].some((o) => o.value === b.dataset.code);
  }
  for (const b of document.querySelectorAll('button.focus-time')) {
    b.addEventListener('click', () => {
      const from = micro(b.dataset.from), to = micro(b.dataset.to), margin = Math.max(50000, (to - from) * 0.1);
      axis.set(from - margin, to + margin);
      $('time').scrollIntoView();
    });
  }
  for (const b of document.querySelectorAll('button.copy')) b.addEventListener('click', () => copy(b));

  // Theme, times, help, keys.
  $('theme').addEventListener('click', nextTheme);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { for (const x of charts) x.draw(true); });
  $('zone').addEventListener('click', () => { prefs.utc = !prefs.utc; showTimes(); range(); for (const x of charts) x.draw(true); table.layout(); });
  showTimes();
  const help = $('help');
  $('help-open').addEventListener('click', () => help.showModal());
  $('help-close').addEventListener('click', () => help.close());
  const go = (id, focus) => { $(id).scrollIntoView({ block: 'start' }); const el = focus && focus(); if (el) el.focus({ preventScroll: true }); };
  document.addEventListener('keydown', (e) => {
    if (e.ctrlKey || e.altKey || e.metaKey || help.open) return;
    const typing = e.target.matches('input, select, textarea');
    if (e.key === 'Escape' && typing) { $('grid').focus({ preventScroll: true }); return; }
    if (typing) return;
    const act = {
      '/': () => { $('q').scrollIntoView({ block: 'center' }); $('q').focus({ preventScroll: true }); $('q').select(); },
      '?': () => help.showModal(),
      c: () => go('causes', () => document.querySelector('.cause summary')),
      t: () => go('time', () => document.querySelector('#charts .chart')),
      l: () => go('connections', () => $('grid')),
      w: () => { $('f-wrong').checked = !$('f-wrong').checked; read(); },
      d: nextTheme,
    }[e.key];
    if (act) { act(); e.preventDefault(); }
  });

  // Paper: everything unfolded, and the first connections as they are filtered.
  let folded = [];
  addEventListener('beforeprint', () => {
    folded = [...document.querySelectorAll('main details:not([open])')];
    for (const x of folded) x.open = true;
    $('print-rows').replaceChildren(...table.plain(300));
  });
  addEventListener('afterprint', () => { for (const x of folded) x.open = false; $('print-rows').replaceChildren(); });
  root.dataset.ready = 'yes';
}

// copy puts the fix list beside a button on the clipboard, or selects it where
// there is none for files.
async function copy(button) {
  const list = button.closest('.body').querySelector('.fix');
  const text = [...list.children].map((li) => '- ' + li.textContent).join('\n');
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  } catch {
    getSelection().selectAllChildren(list);
    button.textContent = 'Selected: press Ctrl+C';
  }
}

main();
