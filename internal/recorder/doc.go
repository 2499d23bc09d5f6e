// Package recorder keeps what a run learns in dumps: in one file or a row of
// them, or, as a flight recorder, as a window of the last minutes that becomes
// a file when something happened.
//
// A [Recorder] takes a run's calls on the run's own goroutine and turns them
// into frames there. Another goroutine compresses and writes them; between the
// two is a queue of bounded size, so that a disk that hangs holds nobody up. A
// frame that finds the queue full is dropped and counted, and a reader of the
// dump is told of it at that place.
package recorder
