// Package diagnose concludes causes from connections: one rule a file, with
// its texts, evidence and fix beside it.
//
// It is pure, bounded and deterministic as internal/timeline is, and it prefers
// silence: a rule that concludes from the absence of something refuses where
// events were lost, and a verdict states nothing that no event showed.
//
// To add a verdict, write a type that implements [Rule] and one or more of
// [EntryRule], [EndRule], [ChangeRule], [ListenerRule] and [TickRule], and
// list it in rules.go. When it holds for something it calls [Engine.Report]
// with a [Finding], which knows how to put itself into words.
package diagnose
