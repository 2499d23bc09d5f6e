package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/tcptrace/tcptrace/internal/lab"
	"github.com/tcptrace/tcptrace/internal/pipeline"
	"github.com/tcptrace/tcptrace/internal/render"
	"github.com/tcptrace/tcptrace/tracer"
	"github.com/tcptrace/tcptrace/tracer/event"
)

// pipeline replays real events through correlation and diagnosis.
func (b *bench) pipeline() error {
	ns, err := lab.NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	t, err := tracer.Open(b.ctx, tracer.Options{Attach: b.attach})
	if err != nil {
		return err
	}
	defer t.Close()
	var events []event.Event
	var wg sync.WaitGroup
	wg.Go(func() {
		batch := make([]event.Event, 1024)
		for {
			n, err := t.Read(batch, 100*time.Millisecond)
			events = append(events, batch[:n]...)
			if err != nil {
				return
			}
		}
	})
	if _, err := lab.Churn(b.ctx, ns, b.connections, 100); err != nil {
		return err
	}
	t.Stop()
	wg.Wait()

	var rates []float64
	for range b.rounds {
		m := pipeline.NewMachine(pipeline.Options{
			Out:  render.NewJSON(io.Discard),
			Show: pipeline.Show{Verdicts: true, Connections: true},
		})
		begun := time.Now()
		next := int64(0)
		for i := range events {
			m.Event(&events[i])
			if at := events[i].Time; at > next {
				m.Advance(at)
				next = at + int64(100*time.Millisecond)
			}
		}
		rates = append(rates, float64(len(events))/time.Since(begun).Seconds())
	}
	fmt.Printf("pipeline: %d events of churn; %.1f times the 1.5 million a second and processor aimed at\n", len(events), mid(rates)/1.5e6)
	return nil
}
