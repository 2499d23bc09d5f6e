// Package webreport writes what was found as one self-contained HTML file: the
// ranked causes with evidence and fix, a time axis that can be zoomed, the fill
// of listeners' accept queues, and the connections with their timelines.
//
// A [Report] is a [render.Renderer]. It is given one run or several, one after
// the other, keeps a bounded excerpt of them, and writes the page at the end:
// the same calls give the same bytes. What it had to leave out, the page says.
//
// The page asks the network for nothing, and its Content-Security-Policy
// forbids it to: scripts and styles are inline, allowed by their hashes. Head,
// causes, audit and cost are plain HTML, which a browser without JavaScript
// shows too; the rest is data in columns with a dictionary of strings (see
// data.go), compressed by gzip, which the scripts in assets unpack. Whatever
// comes from the network or from a process has passed [render.Safe], and enters
// the page as text only.
package webreport
