package kerneltest

import (
	"os"
	"testing"

	"github.com/tcptrace/tcptrace/internal/lab"
)

func TestMain(m *testing.M) {
	lab.Main()
	runMain()
	os.Exit(m.Run())
}
