// Package diagnose concludes causes from connections: one rule a file, with
// its texts, evidence and fix beside it.
//
// It is pure, bounded and deterministic as internal/timeline is, and it prefers
// silence: a rule that concludes from the absence of something refuses where
// events were lost, and a verdict states nothing that no event showed.
//

package diagnose
