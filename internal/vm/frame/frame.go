// Package frame is the protocol between a virtual machine's init and the host:
// the plan that goes in with the initial RAM disk, and the stream of frames
// that comes out of the second serial port.
//
// Kernel messages go to the first port, so nothing but frames is ever on the
// second: a frame's length is enough to tell where it ends, whatever the
// commands print.
package frame

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Paths inside the machine that host and init agree on.
const (
	PlanPath    = "/vm/plan.json"
	ModuleDir   = "/vm/modules"
	ProgramDir  = "/vm/bin"
	OutputPort  = "/dev/ttyS1"
	streamStart = "tcptrace-vm 1\n"
	maxPayload  = 1 << 20 // bytes; init cuts its output into far smaller pieces
)

// Plan is what a machine does before it powers itself off.
type Plan struct {
	// Hostname is set before the first command.
	Hostname string `json:"hostname"`
	// Modules are kernel modules, as file names in ModuleDir, in the order in
	// which they are loaded.
	Modules []string `json:"modules"`
	// Commands run one after the other; one that fails does not stop the rest.
	Commands []Command `json:"commands"`
}

// Command is one program to run in the machine.
type Command struct {
	Path string   `json:"path"`
	Args []string `json:"args"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`
	// Merge sends what the command writes to its standard error as Stdout
	// frames too, so that the two keep their order.
	Merge bool `json:"merge"`
	// Timeout is the longest time that the command may run; 0 means no limit.
	// On expiry it gets SIGQUIT, so that a Go program shows its goroutines, and
	// 5 s later SIGKILL.
	Timeout time.Duration `json:"timeout"`
}

// Kind says what a frame holds.
type Kind string

// The kinds of frame, in the order in which a machine sends them.
const (
	Ready  Kind = "ready"  // payload: the kernel's release
	Log    Kind = "log"    // payload: one line about the machine's own preparation
	Start  Kind = "start"  // the command with this index starts
	Stdout Kind = "stdout" // payload: bytes that it wrote
	Stderr Kind = "stderr" // payload: bytes that it wrote
	Exit   Kind = "exit"   // payload: JSON of Status
	End    Kind = "end"    // all commands have run; the machine powers off
)

// Frame is one message from a machine.
type Frame struct {
	Kind Kind
	// Command is the index into Plan.Commands that the frame is about; 0 for
	// frames that are about none.
	Command int
	Payload []byte
}

// Status is how a command ended.
type Status struct {
	// Code is the exit status, 0 to 255; -1 when the command was ended by a
	// signal or could not be started.
	Code     int    `json:"code"`
	Signal   string `json:"signal,omitempty"`
	Error    string `json:"error,omitempty"`
	TimedOut bool   `json:"timed_out,omitempty"`
	// Millis is the wall time that the command took, in milliseconds.
	Millis int64 `json:"millis"`
}

// OK reports whether the command ended by itself with exit status 0.
func (s Status) OK() bool { return s.Code == 0 && s.Error == "" && !s.TimedOut }

func (s Status) String() string {
	switch {
	case s.TimedOut:
		return fmt.Sprintf("timed out after %d ms", s.Millis)
	case s.Error != "":
		return s.Error
	case s.Signal != "":
		return "ended by signal: " + s.Signal
	default:
		return fmt.Sprintf("exit status %d", s.Code)
	}
}

// Writer sends frames. It may be used by several goroutines.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	err error
}

// NewWriter starts a stream on w.
func NewWriter(w io.Writer) (*Writer, error) {
	if _, err := io.WriteString(w, streamStart); err != nil {
		return nil, fmt.Errorf("starting the stream: %w", err)
	}
	return &Writer{w: w}, nil
}

// Send writes one frame; a payload longer than 1 MiB is refused. After an error
// every later call returns that error: a torn frame cannot be mended.
func (w *Writer) Send(kind Kind, command int, payload []byte) error {
	if len(payload) > maxPayload {
		return fmt.Errorf("sending a frame: %d bytes are more than %d", len(payload), maxPayload)
	}
	buf := fmt.Appendf(nil, "%s %d %d\n", kind, command, len(payload))
	buf = append(buf, payload...)
	buf = append(buf, '\n')

	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if _, err := w.w.Write(buf); err != nil {
		w.err = fmt.Errorf("sending a frame: %w", err)
	}
	return w.err
}

// SendStatus sends an Exit frame.
func (w *Writer) SendStatus(command int, s Status) error {
	payload, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding a status: %w", err)
	}
	return w.Send(Exit, command, payload)
}

// ParseStatus reads the payload of an Exit frame.
func ParseStatus(payload []byte) (Status, error) {
	var s Status
	if err := json.Unmarshal(payload, &s); err != nil {
		return Status{}, fmt.Errorf("%w: a command's status: %v", ErrMalformed, err)
	}
	return s, nil
}

// ErrMalformed is returned for bytes that are not frames.
var ErrMalformed = errors.New("malformed frame")

// Reader receives frames.
type Reader struct {
	r       *bufio.Reader
	started bool
}

// NewReader reads the stream from r.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReader(r)} }

// Next returns the next frame. It returns io.EOF where the stream ends between
// two frames, io.ErrUnexpectedEOF where it ends within one (the machine died),
// and ErrMalformed where it is something else.
func (r *Reader) Next() (Frame, error) {
	if !r.started {
		if err := r.skipToStart(); err != nil {
			return Frame{}, err
		}
		r.started = true
	}
	header, err := r.line()
	if err != nil {
		return Frame{}, err
	}
	f, size, err := parseHeader(header)
	if err != nil {
		return Frame{}, err
	}
	f.Payload = make([]byte, size+1)
	if _, err := io.ReadFull(r.r, f.Payload); err != nil {
		return Frame{}, io.ErrUnexpectedEOF
	}
	if f.Payload[size] != '\n' {
		return Frame{}, fmt.Errorf("%w: no newline after the payload of %q", ErrMalformed, header)
	}
	f.Payload = f.Payload[:size]
	return f, nil
}

// skipToStart passes over what firmware may have written to the port.
func (r *Reader) skipToStart() error {
	for {
		line, err := r.line()
		if err != nil {
			return err
		}
		if strings.HasSuffix(line+"\n", streamStart) {
			return nil
		}
	}
}

// line returns one line of at most the buffer's size, without its newline.
func (r *Reader) line() (string, error) {
	b, err := r.r.ReadSlice('\n')
	switch {
	case err == nil:
		return string(b[:len(b)-1]), nil
	case errors.Is(err, io.EOF) && len(b) == 0:
		return "", io.EOF
	case errors.Is(err, io.EOF):
		return "", io.ErrUnexpectedEOF
	case errors.Is(err, bufio.ErrBufferFull):
		return "", fmt.Errorf("%w: a header of more than %d bytes", ErrMalformed, len(b))
	default:
		return "", fmt.Errorf("reading a frame: %w", err)
	}
}

func parseHeader(header string) (Frame, int, error) {
	fields := strings.Split(header, " ")
	if len(fields) != 3 {
		return Frame{}, 0, fmt.Errorf("%w: header %q", ErrMalformed, header)
	}
	command, err := strconv.Atoi(fields[1])
	if err != nil || command < 0 {
		return Frame{}, 0, fmt.Errorf("%w: command number %q", ErrMalformed, fields[1])
	}
	size, err := strconv.Atoi(fields[2])
	if err != nil || size < 0 || size > maxPayload {
		return Frame{}, 0, fmt.Errorf("%w: length %q", ErrMalformed, fields[2])
	}
	switch k := Kind(fields[0]); k {
	case Ready, Log, Start, Stdout, Stderr, Exit, End:
		return Frame{Kind: k, Command: command}, size, nil
	default:
		return Frame{}, 0, fmt.Errorf("%w: kind %q", ErrMalformed, fields[0])
	}
}
