// Tcptrace names the cause of a TCP connection's end, with its evidence.
package main

import (
	"context"
	"os"

	"github.com/tcptrace/tcptrace/internal/lab"
)

func main() {
	// The processes that take part in a demo are this program started again.
	lab.Main()
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
