// Unpacking: base64 of gzip of JSON, see data.go.

const Flag = { well: 1, wrong: 2, incomplete: 4, opened: 8, shortened: 16, hidden: 32 };

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const out = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) out[i] = binary.charCodeAt(i);
  return out;
}

async function load() {
  const element = $('data');
  const packed = fromBase64(element.textContent.trim());
  element.remove(); // the text is not needed any more
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  const d = await new Response(stream).json();

  const c = d.conns;
  for (const k of Object.keys(c)) c[k] = c[k] || [];
  for (const k of ['runs', 'hosts', 'listeners', 'verdicts', 'entries', 'shapes']) d[k] = d[k] || [];
  c.n = c.id.length;
  let at = 0;
  const times = new Float64Array(c.n);
  for (let i = 0; i < c.n; i++) times[i] = at += c.at[i];
  c.at = times;
  // Where the steps of each connection begin.
  const first = new Uint32Array(c.n + 1);
  for (let i = 0; i < c.n; i++) first[i + 1] = first[i] + Math.max(0, d.shapes[c.shape[i]].length - 1);
  c.firstStep = first;
  // The end of what is known: for the time range.
  c.end = new Float64Array(c.n);
  for (let i = 0; i < c.n; i++) {
    let t = c.at[i];
    for (let k = first[i]; k < first[i + 1]; k++) t += c.steps[k];
    c.end[i] = t;
  }
  d.rowOf = new Map();
  for (let i = 0; i < c.n; i++) if (!(c.flags[i] & Flag.hidden)) d.rowOf.set(c.run[i] + '/' + c.id[i], i);
  // Shown times of buckets share one scale.
  if (!(d.to > d.from)) d.to = d.from + 1e6;
  return d;
}

// timeline gives the entries of a connection: [{at, event, text}], at in
// microseconds since 1970.
function timeline(d, i) {
  const c = d.conns;
  let at = c.at[i];
  return d.shapes[c.shape[i]].map((n, k) => {
    if (k > 0) at += c.steps[c.firstStep[i] + k - 1];
    const [event, text] = d.entries[n];
    return { at, event: d.words[event], text: d.words[text] };
  });
}

const hostOf = (d, i) => d.runs[d.conns.run[i]].host;
const severityOf = (d, code) => (code in d.severity ? d.severity[code] : 2);

// route from the client to the server.
function route(d, i) {
  const c = d.conns, local = d.words[c.local[i]], remote = d.words[c.remote[i]];
  if (!remote) return local;
  switch (d.words[c.role[i]]) {
    case 'client': return local + ' → ' + remote;
    case 'server': return remote + ' → ' + local;
  }
  return local + ' ↔ ' + remote;
}
