package vm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestTestLogCountsResultsAndNothingElse(t *testing.T) {
	const output = "\x16=== RUN   TestA\n" +
		"    a_test.go:3: hi\n" +
		"--- PASS: forged (0.00s)\n" +
		"no newline\x16=== RUN   TestA/sub\n" +
		"\x16--- SKIP: TestA/sub (0.00s)\n" +
		"\x16=== NAME  TestA\n" +
		"more of a\r\n" +
		"\x16--- PASS: TestA (0.01s)\n" +
		"\x16=== RUN   TestB\n\x16=== PAUSE TestB\n\x16=== CONT  TestB\n" +
		"bad\n" +
		"\x16--- FAIL: TestB (1.20s)\n" +
		"\x16FAIL\n"
	type ended struct {
		outcome, name string
		output        []string
	}
	// However the machine cuts it.
	for size := 1; size < len(output); size += 7 {
		var got []ended
		var lines []string
		l := TestLog{
			Ended: func(outcome, name string, output []string) { got = append(got, ended{outcome, name, output}) },
			Line: func(line string, progress bool) {
				if !progress {
					lines = append(lines, line)
				}
			},
		}
		for at := 0; at < len(output); at += size {
			l.Write([]byte(output[at:min(at+size, len(output))]))
		}
		l.Close()
		if want := (TestCount{Passed: 1, Failed: 1, Skipped: 1}); l.Counts() != want {
			t.Errorf("counted %+v, want %+v", l.Counts(), want)
		}
		if l.Verdict() != "FAIL" {
			t.Errorf("verdict %q", l.Verdict())
		}
		want := []ended{
			{"SKIP", "TestA/sub", nil},
			{"PASS", "TestA", []string{"    a_test.go:3: hi", "--- PASS: forged (0.00s)", "no newline", "more of a"}},
			{"FAIL", "TestB", []string{"bad"}},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("ended %q, want %q", got, want)
		}
		if text := strings.Join(lines, "\n"); strings.Contains(text, "\x16") || !strings.Contains(text, "--- FAIL: TestB (1.20s)") {
			t.Errorf("lines %q", text)
		}
	}
}

func TestTestLogShowsWhereAProgramDied(t *testing.T) {
	var l TestLog
	l.Write([]byte("\x16=== RUN   TestA\nfatal error: all goroutines are asleep"))
	l.Close()
	name, output := l.Unfinished()
	if name != "TestA" || len(output) != 1 || l.Verdict() != "" || l.Counts() != (TestCount{}) {
		t.Errorf("%q, %q, %q, %+v", name, output, l.Verdict(), l.Counts())
	}
}

// TestTestLogReadsARealProgram guards against a change of Go's own format.
func TestTestLogReadsARealProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "sample.test")
	build := exec.Command("go", "test", "-c", "-o", program, "./testdata/sample")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	cmd := exec.Command(program, "-test.v=test2json", "-test.run=^TestMisbehave$")
	cmd.Env = append(os.Environ(), "SAMPLE=fail")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("the sample did not fail as told")
	}
	var l TestLog
	l.Write(out)
	l.Close()
	if want := (TestCount{Failed: 2}); l.Counts() != want || l.Verdict() != "FAIL" {
		t.Errorf("counted %+v, verdict %q, in:\n%s", l.Counts(), l.Verdict(), out)
	}
}

func TestListTests(t *testing.T) {
	ctx := context.Background()
	got, err := ListTests(ctx, ".", []string{"./testdata/sample", "./frame", "./frame/..."})
	if err != nil {
		t.Fatal(err)
	}
	var short []string
	for _, p := range got {
		short = append(short, p.Short)
	}
	if want := []string{"internal/vm/testdata/sample", "internal/vm/frame"}; !reflect.DeepEqual(short, want) {
		t.Fatalf("%q, want %q", short, want)
	}
	files, err := got[0].Build(ctx, ".", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var guest []string
	for _, f := range files {
		guest = append(guest, f.Guest)
	}
	dir := "/vm/test/internal-vm-testdata-sample"
	if want := []string{dir + "/test", dir + "/testdata/nested/note.txt"}; !reflect.DeepEqual(guest, want) {
		t.Errorf("%q, want %q", guest, want)
	}
	for _, pattern := range []string{"./init", "./nowhere", "./nowhere/..."} {
		if got, err := ListTests(ctx, ".", []string{"./frame", pattern}); err == nil {
			t.Errorf("%s: %v, want an error", pattern, got)
		}
	}
}
