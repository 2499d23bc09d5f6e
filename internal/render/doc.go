// Package render shows what was found: text for people, JSON lines for
// programs, both from the same values. It invents no text about causes (that
// is in internal/diagnose and internal/timeline), reads no clock and no /proc,
// and the same values give the same output byte for byte.
//
// Whatever comes from the network or from a process is escaped: see [Safe].
package render
