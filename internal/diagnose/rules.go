package diagnose

import (
	"github.com/tcptrace/tcptrace/internal/timeline"
)

// newRules returns every rule, fresh, in the order of the catalogue. That is
// also the order in which they hear of an event: a rule may look at what the
// ones before it said of the same connection.
func newRules() []Rule {
	ports, hangups, accepts := newPortListeners(), newImmediateClose(), newSlowAccept()
	scans := newSYNScan(ports)
	return []Rule{
		newAcceptQueueOverflow(),
		backlogClamped{},
		newSYNQueueOverflow(),
		scans,
		hangups,
		newReconnectLoop(hangups),
		newCloseWaitLeak(),
		newFinWaitStuck(),
		newZeroWindow(),
		accepts,
		newConnectRefused(),
		newConnectTimeout(),
		newPortExhaustion(),
		newTimeWaitPileup(),
		newBindConflict(),
		newPortClosed(ports, scans),
		newLocalDrop(),
		newHalfOpen(),
		newKeepaliveTimeout(),
		newRetransmissionTimeout(),
		newPAWSRejected(),
		newAbortedOnMemory(),
		newResetSent(hangups),
		newResetReceived(hangups, accepts),
		newFinalACKLost(),
		newHandshakeTimeout(),
	}
}

// codes are those of newRules, in its order.
var codes, codeIndex = func() ([]string, map[string]int) {
	var list []string
	index := make(map[string]int)
	for i, r := range newRules() {
		code := r.Code()
		list = append(list, code)
		index[code] = i
	}
	return list, index
}()

func ruleIndex(r Rule) int { return codeIndex[r.Code()] }

// Catalogue describes every verdict there is a rule for, in a fixed order.
func Catalogue() []Doc {
	var docs []Doc
	for _, r := range newRules() {
		docs = append(docs, r.Doc())
	}
	return docs
}

// Codes returns the codes of the verdicts that c is part of, in the order of
// the catalogue.
func Codes(c *timeline.Conn) []string {
	var out []string
	for i, code := range codes {
		if c.Tag&(1<<i) != 0 {
			out = append(out, code)
		}
	}
	return out
}
