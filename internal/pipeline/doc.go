// Package pipeline is the one loop: events from a source go through
// internal/timeline and internal/diagnose to a renderer.
//
// A [Machine] is what live tracing and a replay share: it is fed events and
// facts, with the time as a value, and what comes out depends on nothing else.
// [Run] feeds one from a running kernel.
package pipeline
