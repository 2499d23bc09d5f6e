package lab

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	roleVariable  = "TCPTRACE_LAB_ROLE"  // the participant's name
	limitVariable = "TCPTRACE_LAB_LIMIT" // how long it may live, as a Go duration
)

// Main turns this process into a participant of a case if it was started as
// one, and then never returns. It is to be called first in main and TestMain.
func Main() {
	comm := os.Getenv(roleVariable)
	if comm == "" {
		return
	}
	limit, err := time.ParseDuration(os.Getenv(limitVariable))
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s: %v\n", roleVariable, limitVariable, err)
		os.Exit(2)
	}
	time.AfterFunc(limit, func() {
		fmt.Fprintf(os.Stderr, "%s outlived its limit of %s\n", comm, limit)
		os.Exit(3)
	})
	if err := newParticipant().obey(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", comm, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// participant is the state of a process that takes part in a case.
type participant struct {
	mu      sync.Mutex
	out     *json.Encoder
	servers map[int]*server // by the descriptor of the listener
	goSide  goSide
}

func newParticipant() *participant {
	return &participant{out: json.NewEncoder(os.Stdout), servers: make(map[int]*server)}
}

// verb is something that a participant can be called to do.
type verb func(p *participant, args json.RawMessage) (any, error)

// with makes a verb of a function with typed arguments.
func with[A any](fn func(p *participant, args A) (any, error)) verb {
	return func(p *participant, raw json.RawMessage) (any, error) {
		var args A
		if err := json.Unmarshal(raw, &args); err != nil {
			return nil, fmt.Errorf("understanding the arguments: %w", err)
		}
		return fn(p, args)
	}
}

var verbs = map[string]verb{
	"serve":     with((*participant).serve),
	"accepting": with((*participant).accepting),
	"reading":   with((*participant).reading),
	"serving":   with((*participant).serving),
	"retire":    with((*participant).retire),
	"connect":   with((*participant).connect),
	"exchange":  with((*participant).exchange),
	"close":     with((*participant).close),
	"loop":      with((*participant).loop),
	"short":     with((*participant).short),
	"bind":      with((*participant).bind),
	"listen":    with((*participant).listen),
	"states":    with((*participant).states),
	"pour":      with((*participant).pour),
	"option":    with((*participant).option),
	"hold":      with((*participant).hold),
	"go-serve":  with((*participant).goServe),
	"go-accept": with((*participant).goAccept),
	"go-echo":   with((*participant).goEcho),
}

// obey carries out calls until its input ends. Each runs on its own goroutine,
// so that one may wait for what another brings about.
func (p *participant) obey() error {
	lines := json.NewDecoder(bufio.NewReader(os.Stdin))
	for {
		var r request
		if err := lines.Decode(&r); err != nil {
			return nil // whoever started this process is done with it
		}
		go p.carryOut(r)
	}
}

func (p *participant) carryOut(r request) {
	answer := response{ID: r.ID}
	result, err := func() (any, error) {
		do, ok := verbs[r.Verb]
		if !ok {
			return nil, fmt.Errorf("unknown verb %q", r.Verb)
		}
		return do(p, r.Args)
	}()
	if err == nil {
		answer.Result, err = json.Marshal(result)
	}
	if err != nil {
		answer.Error = err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// If this fails, the starter is gone and so is the input.
	_ = p.out.Encode(answer)
}
