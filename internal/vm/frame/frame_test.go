package frame

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestFramesArriveAsTheyWereSent(t *testing.T) {
	sent := []Frame{
		{Ready, 0, []byte("6.1.0")},
		{Start, 3, []byte{}},
		{Stdout, 3, []byte("a line\nexit 3 1\n\x00\xff without an end")},
		{Stderr, 3, bytes.Repeat([]byte("x"), maxPayload)},
		{End, 0, []byte{}},
	}
	var stream bytes.Buffer
	stream.WriteString("firmware says\r\nhello ")
	w, err := NewWriter(&stream)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range sent {
		if err := w.Send(f.Kind, f.Command, f.Payload); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.SendStatus(3, Status{Code: -1, Signal: "killed", Millis: 12}); err != nil {
		t.Fatal(err)
	}

	r := NewReader(&stream)
	for _, want := range sent {
		got, err := r.Next()
		if err != nil {
			t.Fatalf("%s: %v", want.Kind, err)
		}
		if got.Kind != want.Kind || got.Command != want.Command || !bytes.Equal(got.Payload, want.Payload) {
			t.Errorf("got %s %d with %d bytes, want %s %d with %d", got.Kind, got.Command, len(got.Payload), want.Kind, want.Command, len(want.Payload))
		}
	}
	f, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseStatus(f.Payload)
	if err != nil || s.Code != -1 || s.Signal != "killed" || s.Millis != 12 || s.OK() {
		t.Errorf("status %+v, %v", s, err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("after the last frame: %v, want EOF", err)
	}
}

func TestReaderTellsATornStreamFromAnEndedOne(t *testing.T) {
	for _, c := range []struct {
		stream string
		want   error
	}{
		{"", io.EOF},
		{"noise", io.ErrUnexpectedEOF},
		{"noise\n", io.EOF},
		{streamStart, io.EOF},
		{streamStart + "stdout 0 5\nab", io.ErrUnexpectedEOF},
		{streamStart + "stdout 0 2\nab", io.ErrUnexpectedEOF},
		{streamStart + "stdo", io.ErrUnexpectedEOF},
		{streamStart + "stdout 0 2\nabc", ErrMalformed},
		{streamStart + "stdout 0 -1\n", ErrMalformed},
		{streamStart + "stdout -1 0\n\n", ErrMalformed},
		{streamStart + "stdout 0 1048577\n", ErrMalformed},
		{streamStart + "other 0 0\n\n", ErrMalformed},
		{streamStart + "stdout 0\n", ErrMalformed},
		{streamStart + strings.Repeat("x", 5000) + "\n", ErrMalformed},
	} {
		_, err := NewReader(strings.NewReader(c.stream)).Next()
		if !errors.Is(err, c.want) {
			t.Errorf("%.40q: %v, want %v", c.stream, err, c.want)
		}
	}
}

func TestWriterRefusesWhatNoReaderTakes(t *testing.T) {
	var stream bytes.Buffer
	w, err := NewWriter(&stream)
	if err != nil {
		t.Fatal(err)
	}
	before := stream.Len()
	if err := w.Send(Stdout, 0, make([]byte, maxPayload+1)); err == nil {
		t.Error("a payload of more than 1 MiB was sent")
	}
	if stream.Len() != before {
		t.Error("a part of it was sent")
	}
}

type failingWriter struct{ left int }

func (w *failingWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		return w.left, io.ErrShortWrite
	}
	w.left -= len(p)
	return len(p), nil
}

func TestWriterSendsNothingAfterAnError(t *testing.T) {
	w, err := NewWriter(&failingWriter{left: 20})
	if err != nil {
		t.Fatal(err)
	}
	first := w.Send(Stdout, 0, []byte("much too long"))
	if !errors.Is(first, io.ErrShortWrite) {
		t.Fatalf("%v, want a short write", first)
	}
	if again := w.Send(Log, 0, nil); again != first {
		t.Errorf("the next frame: %v, want %v", again, first)
	}
}

func TestParseStatusRefusesWhatIsNone(t *testing.T) {
	if _, err := ParseStatus([]byte("{")); !errors.Is(err, ErrMalformed) {
		t.Errorf("%v, want %v", err, ErrMalformed)
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte(streamStart + "stdout 0 3\nabc\nexit 0 2\n{}\nend 0 0\n\n"))
	f.Add([]byte("boot\r\n" + streamStart))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := NewReader(bytes.NewReader(stream))
		total := 0
		for {
			f, err := r.Next()
			if err != nil {
				return
			}
			total += len(f.Payload)
			if total > len(stream) {
				t.Fatalf("%d bytes came out of %d", total, len(stream))
			}
			if f.Kind == Exit {
				if s, err := ParseStatus(f.Payload); err == nil && s.String() == "" {
					t.Fatal("a status without words")
				}
			}
		}
	})
}
