// What the other files share. All of them become one script, in the order of
// page.go, inside one function.

const $ = (id) => document.getElementById(id);

// h makes an element. Strings among the children become text, never markup.
function h(tag, props, ...children) {
  const el = document.createElement(tag);
  for (const [k, v] of Object.entries(props || {})) {
    if (k === 'class') el.className = v;
    else if (k === 'on') for (const [type, fn] of Object.entries(v)) el.addEventListener(type, fn);
    else if (k.startsWith('aria-')) el.setAttribute(k, v);
    else if (v === true) el.setAttribute(k, '');
    else if (v !== false && v !== null && v !== undefined) el.setAttribute(k, v);
  }
  el.append(...children.filter((c) => c !== null && c !== undefined && c !== ''));
  return el;
}

const SVG = 'http://www.w3.org/2000/svg';

function svg(tag, attributes, ...children) {
  const el = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attributes || {})) el.setAttribute(k, v);
  el.append(...children);
  return el;
}

// What is settled by the reader: times in UTC or local.
const prefs = { utc: true };

const number = (n) => n.toLocaleString('en-US');
const two = (n) => String(n).padStart(2, '0');

// parts of a time in microseconds since 1970.
function parts(us) {
  const d = new Date(us / 1000);
  const micro = Math.floor(((us % 1e6) + 1e6) % 1e6);
  return prefs.utc
    ? { y: d.getUTCFullYear(), mo: d.getUTCMonth() + 1, d: d.getUTCDate(), h: d.getUTCHours(), mi: d.getUTCMinutes(), s: d.getUTCSeconds(), micro }
    : { y: d.getFullYear(), mo: d.getMonth() + 1, d: d.getDate(), h: d.getHours(), mi: d.getMinutes(), s: d.getSeconds(), micro };
}

const date = (us) => { const p = parts(us); return `${p.y}-${two(p.mo)}-${two(p.d)}`; };

function clock(us, digits) {
  const p = parts(us);
  let s = `${two(p.h)}:${two(p.mi)}:${two(p.s)}`;
  if (digits) s += '.' + String(p.micro).padStart(6, '0').slice(0, digits);
  return s;
}

const instant = (us) => `${date(us)} ${clock(us, 3)} ${zone()}`;

function zone() {
  if (prefs.utc) return 'UTC';
  const part = new Intl.DateTimeFormat('en', { timeZoneName: 'short' }).formatToParts(new Date()).find((p) => p.type === 'timeZoneName');
  return part ? part.value : 'local';
}

// duration of microseconds, two or three digits.
function duration(us) {
  const f = (v, unit) => (v < 10 ? v.toFixed(1).replace(/\.0$/, '') : Math.round(v)) + ' ' + unit;
  if (us < 0) return '';
  if (us < 100) return f(us, 'µs');
  if (us < 1e6) return f(us / 1e3, 'ms');
  if (us < 120e6) return f(us / 1e6, 's');
  if (us < 7200e6) return f(us / 60e6, 'min');
  if (us < 259200e6) return f(us / 3600e6, 'h');
  return f(us / 86400e6, 'days');
}

function bytes(n) {
  if (n < 1000) return n + ' B';
  for (const unit of ['kB', 'MB', 'GB', 'TB']) {
    n /= 1000;
    if (n < 1000) return (n < 10 ? n.toFixed(1) : Math.round(n)) + ' ' + unit;
  }
  return Math.round(n) + ' PB';
}

const severityNames = ['error', 'warning', 'info'];

// css reads a colour of the page's style.
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function debounce(ms, fn) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(fn, ms); };
}
