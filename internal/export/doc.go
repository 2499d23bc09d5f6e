// Package export writes what was found for other programs: tables in Parquet
// files, JSON lines, and a trace for Perfetto and chrome://tracing.
//
// Each form is a [Sink]: a renderer that the pipeline calls as it calls any
// other, and that takes the raw events beside. A sink keeps what it needs for
// the connections that live, not the run, and does nothing but write: it
// creates no file, reads no clock, and the same values give the same bytes.
//
// Names that came from the network or from a process are escaped as on a
// terminal ([render.Safe]), since sooner or later somebody prints a table:
// what comes out is valid UTF-8 without control characters.
package export
