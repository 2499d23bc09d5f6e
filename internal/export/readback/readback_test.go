package readback

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	_ "github.com/duckdb/duckdb-go/v2"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/export"
	"github.com/tcptrace/tcptrace/internal/export/sample"
)

// conns is how many connections each run has: more than one row group of
// connections, and of events.
const conns = 30_000

// tables writes runs and returns a database that finds them.
func tables(t *testing.T, n int, cut bool) *sql.DB {
	t.Helper()
	dir := t.TempDir()
	var b [3]bytes.Buffer
	sink := export.NewParquet(&b[0], &b[1], &b[2])
	require.NoError(t, sample.Feed(sink, n, cut))
	require.NoError(t, sink.Close())
	for i, name := range []string{"events", "connections", "verdicts"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".parquet"), b[i].Bytes(), 0o600))
	}
	db, err := sql.Open("duckdb", "")
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(1) // a database in memory is a connection's own
	_, err = db.Exec(fmt.Sprintf("SET file_search_path = '%s'", dir))
	require.NoError(t, err)
	_, err = db.Exec("SET TimeZone = 'UTC'")
	require.NoError(t, err)
	return db
}

// rows runs a query and returns what it gives as text, NULL for null.
func rows(t *testing.T, db *sql.DB, query string) (columns []string, list [][]string) {
	t.Helper()
	r, err := db.Query(query)
	require.NoError(t, err, query)
	defer r.Close()
	columns, err = r.Columns()
	require.NoError(t, err)
	for r.Next() {
		values, refs := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			refs[i] = &values[i]
		}
		require.NoError(t, r.Scan(refs...))
		row := make([]string, len(values))
		for i, v := range values {
			switch v := v.(type) {
			case nil:
				row[i] = "NULL"
			case time.Time:
				row[i] = v.UTC().Format("2006-01-02 15:04:05.999999999")
			default:
				row[i] = fmt.Sprint(v)
			}
		}
		list = append(list, row)
	}
	require.NoError(t, r.Err(), query)
	return columns, list
}

// one is the only row of a query, its values separated by bars.
func one(t *testing.T, db *sql.DB, query string) string {
	t.Helper()
	_, list := rows(t, db, query)
	require.Len(t, list, 1, query)
	return strings.Join(list[0], "|")
}

func TestCounts(t *testing.T) {
	for _, cut := range []bool{false, true} {
		db := tables(t, conns, cut)
		events := conns*sample.EventsEach + sample.OtherEvents
		_, list := rows(t, db, "SELECT host, run, count(*), count(DISTINCT seq), max(seq) FROM 'events.parquet' GROUP BY ALL ORDER BY run")
		require.Equal(t, [][]string{
			{"web-1", "0", fmt.Sprint(events), fmt.Sprint(events), fmt.Sprint(events - 1)},
			{"db-1", "1", fmt.Sprint(events), fmt.Sprint(events), fmt.Sprint(events - 1)},
		}, list)
		require.Equal(t, fmt.Sprintf("%d|%d", 2*conns, 2*conns), one(t, db, "SELECT count(*), count(DISTINCT conn) FROM 'connections.parquet'"))
		require.Equal(t, fmt.Sprint(2*conns/sample.ResetEvery), one(t, db, "SELECT count(*) FROM 'connections.parquet' WHERE verdicts = ['reset-sent'] AND NOT went_well"))
		_, list = rows(t, db, "SELECT host, code, count FROM 'verdicts.parquet' ORDER BY run, code")
		want := [][]string{
			{"web-1", "connect-refused", "7"}, {"web-1", "port-closed", "1"}, {"web-1", "reset-sent", "40"},
			{"db-1", "connect-refused", "7"}, {"db-1", "port-closed", "1"}, {"db-1", "reset-sent", "40"},
		}
		if cut {
			want[5][2] = "2" // as far as it had grown
		}
		require.Equal(t, want, list)
	}
}

// The files are read in pieces, so memory is bounded when they are written.
func TestRowGroups(t *testing.T) {
	db := tables(t, conns, false)
	for _, table := range []string{"events", "connections"} {
		var n int
		require.NoError(t, db.QueryRow("SELECT num_row_groups FROM parquet_file_metadata('"+table+".parquet')").Scan(&n))
		require.Greater(t, n, 1, table)
		require.Equal(t, "ZSTD", one(t, db, "SELECT DISTINCT compression FROM parquet_metadata('"+table+".parquet')"))
	}
}

func TestJoins(t *testing.T) {
	db := tables(t, conns, false)
	require.Equal(t, fmt.Sprintf("%d|%d", 2*conns*sample.EventsEach, 2*conns),
		one(t, db, "SELECT count(*), count(DISTINCT conn) FROM 'events.parquet' JOIN 'connections.parquet' USING (host, conn)"))
	require.Equal(t, fmt.Sprint(2*sample.OtherEvents), one(t, db, "SELECT count(*) FROM 'events.parquet' ANTI JOIN 'connections.parquet' USING (host, conn)"))
	require.Equal(t, fmt.Sprint(2*sample.Verdicts*2),
		one(t, db, "SELECT count(*) FROM (SELECT host, unnest(examples) AS conn FROM 'verdicts.parquet') JOIN 'connections.parquet' USING (host, conn)"))
	// The addresses that both tables have are the same.
	require.Equal(t, fmt.Sprint(2*conns*sample.EventsEach), one(t, db, `SELECT count(*) FROM 'events.parquet' e JOIN 'connections.parquet' c USING (host, run, conn)
		WHERE e.local_addr = c.local_addr AND e.local_port = c.local_port AND e.remote_addr = c.remote_addr AND e.remote_port = c.remote_port`))
}

func TestTimes(t *testing.T) {
	db := tables(t, 100, false)
	first := sample.Began.UnixNano() // of host 0
	require.Equal(t, fmt.Sprintf("%d|%s|%s|%d", first, sample.Began.Format("2006-01-02 15:04:05.999999999"), sample.Began.Truncate(time.Microsecond).Format("2006-01-02 15:04:05.999999999"), int64(sample.Boot)),
		one(t, db, "SELECT time_ns, make_timestamp_ns(time_ns), time, boottime_ns FROM 'events.parquet' WHERE run = 0 AND seq = 0"))
	// An hour later to the nanosecond, and each connection's five events 100,001 ns apart.
	require.Equal(t, fmt.Sprint(int64(time.Hour)), one(t, db, "SELECT max(time_ns) - min(time_ns) FROM 'events.parquet' WHERE seq = 7"))
	require.Equal(t, "100001|100001", one(t, db, `SELECT min(d), max(d) FROM (SELECT time_ns - lag(time_ns) OVER (PARTITION BY host, conn ORDER BY seq) AS d
		FROM 'events.parquet' WHERE conn IS NOT NULL) WHERE d IS NOT NULL`))
	// That the file has nanoseconds, whatever DuckDB makes of them.
	_, list := rows(t, db, "SELECT DISTINCT logical_type FROM (FROM parquet_schema('events.parquet') UNION ALL FROM parquet_schema('connections.parquet') UNION ALL FROM parquet_schema('verdicts.parquet')) WHERE logical_type LIKE 'Timestamp%'")
	require.Len(t, list, 1)
	require.Contains(t, list[0][0], "NANOS")
	require.Contains(t, list[0][0], "isAdjustedToUTC=1")

	require.Equal(t, "NULL|NULL|NULL", one(t, db, "SELECT opened, closed, duration_ms FROM 'connections.parquet' WHERE conn = '"+sample.Conn(0, 1)+"'"))
	require.Equal(t, "400|0.400004", one(t, db, "SELECT epoch_us(closed) - epoch_us(opened), duration_ms FROM 'connections.parquet' WHERE conn = '"+sample.Conn(0, 2)+"'"))
	require.Equal(t, sample.Began.Add(10).Truncate(time.Microsecond).Format("2006-01-02 15:04:05.999999999"), one(t, db, "SELECT DISTINCT first FROM 'verdicts.parquet' WHERE run = 0"))
}

func TestTimelines(t *testing.T) {
	db := tables(t, 100, false)
	_, list := rows(t, db, `SELECT t.at_ms, epoch_us(t.at) - epoch_us(opened), t.event, t.text, t.detail->>'why'
		FROM (SELECT opened, unnest(timeline) AS t FROM 'connections.parquet' WHERE conn = '`+sample.Conn(1, 0)+`')`)
	hostile := strings.ReplaceAll(sample.Hostile, "\xff", "\ufffd") // as JSON has it
	require.Equal(t, [][]string{
		{"0", "0", "syn-sent", "SYN sent", "NULL"},
		{"0.100001", "100", "established", "established", "NULL"},
		{"0.400004", "400", "rst-sent", "RST sent", hostile},
	}, list)
	require.Equal(t, "1000", one(t, db, "SELECT (timeline[1].detail->'pid')::BIGINT FROM 'connections.parquet' WHERE conn = '"+sample.Conn(0, 2)+"'"))
	require.Equal(t, fmt.Sprint(2*(3*100-100/sample.ResetEvery)), one(t, db, "SELECT sum(len(timeline)) FROM 'connections.parquet'"))
}

func TestEventColumns(t *testing.T) {
	db := tables(t, 10, false)
	for _, c := range []struct{ where, columns, want string }{
		{"seq = 0", "kind, kind_number, old_state, new_state, conn, sock, netns, local_addr, local_port, remote_addr, remote_port",
			"listen|2|LISTEN|LISTEN|NULL|1|4026531840|0.0.0.0|80|NULL|NULL"},
		{"seq = 0", "pid, comm, cgroup_id, flags, flags_raw, backlog, queue_limit, somaxconn, listener_id, bytes_sent, syn_ack_attempt, times",
			"812|nginx|77|[Process]|16384|-1|16|4096|1|NULL|NULL|1"},
		{"seq = 1", "kind, remote_addr, remote_port, queue_len, queue_limit, syncookies, flags, pid, backlog, abort_on_overflow",
			"syn-dropped|2001:db8::7|40000|17|16|1|[Ambiguous Inferred]|NULL|NULL|false"},
		{"seq = 2", "kind, reason, reason_name, kernel_function, direction, tcp_flags, tcp_flags_raw, times, bytes_sent, queue_len, err_name",
			"dropped|8|NETFILTER_DROP|nf_hook_slow|out|SYN ACK|18|300|NULL|NULL|NULL"},
		{"seq = 3", "kind, local_addr, reason_name, tcp_flags, direction, flags, sock, conn", "rst-sent|10.0.0.1|NULL|SYN|NULL|[NoSocket]|NULL|NULL"},
		{"seq = 4", "kind, err, err_name, reason_name, pid, comm", "bind-failed|98|EADDRINUSE|bind|900|" + sample.HostileSafe[:strings.Index(sample.HostileSafe, `\xff`)] + `\xff'\`},
		{"seq = 5", "kind, reason_name, sock", "memory|orphans|9"},
		{"seq = 6", "kind, kind_number, old_state, flags, flags_raw, local_addr, local_port", "kind 250|250|state 99|[bit 15]|32768|NULL|NULL"},
		{"seq = 7", "kind, old_state, new_state, abort_on_overflow, queue_len, bytes_sent, remote_addr, remote_port", "state|LISTEN|CLOSE|true|2|NULL|NULL|NULL"},
		{"conn = '" + sample.Conn(0, 0) + "' AND new_state = 'CLOSE'", "kind, reason, reason_name, bytes_sent, srtt_us, queue_len", "rst-sent|11|TCP_ABORT_ON_CLOSE|400|40|NULL"},
		{"conn = '" + sample.Conn(0, 0) + "' AND new_state = 'SYN_SENT'", "kind, old_state, bytes_sent, srtt_us, pid", "state|CLOSE|0|NULL|1000"},
	} {
		require.Equal(t, c.want, one(t, db, "SELECT "+c.columns+" FROM 'events.parquet' WHERE run = 0 AND "+c.where), c.where)
	}
	require.Equal(t, "0", one(t, db, "SELECT count(*) FROM 'events.parquet' WHERE kind = 'snapshot'"))
}

func TestConnectionAndVerdictColumns(t *testing.T) {
	db := tables(t, 20, false)
	require.Equal(t, strings.Join([]string{
		sample.HostileSafe, "666", "connect", `/\xfe`, `3f1c\x00`, "docker", "p", `blue\x1b`, "feed000000000000", "0.0.0.0", "80", "reset: " + sample.HostileSafe,
	}, "|"), one(t, db, "SELECT comm, pid, owner_source, cgroup, container, container_runtime, pod, netns_name, peer, listener_addr, listener_port, story FROM 'connections.parquet' WHERE run = 0 AND conn = '"+sample.Conn(0, 0)+"'"))
	require.Equal(t, "curl|NULL|NULL|NULL|[]|true|client|CLOSE|local|400|0|40", one(t, db,
		"SELECT comm, container, peer, listener_addr, verdicts, went_well, role, state, closed_by, bytes_sent, bytes_received, srtt_us FROM 'connections.parquet' WHERE conn = '"+sample.Conn(0, 2)+"'"))
	require.Equal(t, "true|NULL|ESTABLISHED", one(t, db, "SELECT incomplete, srtt_us, state FROM 'connections.parquet' WHERE conn = '"+sample.Conn(0, 1)+"'"))

	require.Equal(t, "error|certain|process|"+sample.HostileSafe+"|666|2|read what came|TCP_ABORT_ON_CLOSE|9007199254740993|it is not known|"+sample.Conn(0, 0),
		one(t, db, "SELECT severity, confidence, subject_kind, subject_name, pid, len(fix), fix[1], evidence->>'reason', (evidence->'unread_bytes')::BIGINT, evidence->>'$.notes.none', examples[1] FROM 'verdicts.parquet' WHERE run = 0 AND code = 'reset-sent'"))
	require.Equal(t, "info|NULL|NULL", one(t, db, "SELECT severity, pid, comm FROM 'verdicts.parquet' WHERE run = 0 AND code = 'port-closed'"))
}

func TestRunsAreDescribed(t *testing.T) {
	db := tables(t, 10, true)
	for _, table := range []string{"events", "connections", "verdicts"} {
		text := one(t, db, "SELECT decode(value) FROM parquet_kv_metadata('"+table+".parquet') WHERE decode(key) = 'tcptrace.runs'")
		var runs []struct {
			Run        int
			Host       string
			Whole      bool
			Events     uint64
			Lost       map[string]uint64
			Unknowable []string
		}
		require.NoError(t, json.Unmarshal([]byte(text), &runs))
		require.Len(t, runs, 2)
		require.Equal(t, "web-1", runs[0].Host)
		require.True(t, runs[0].Whole)
		require.Equal(t, uint64(10*sample.EventsEach+sample.OtherEvents), runs[0].Events)
		require.Equal(t, []string{`nothing\x1b`}, runs[0].Unknowable)
		require.Equal(t, 1, runs[1].Run)
		require.False(t, runs[1].Whole)
		require.Equal(t, map[string]uint64{"ring": 12}, runs[1].Lost)
	}
}

const page = "../../../docs/export.md"

var column = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (.*?) \\| .*\\|$")

// The page says of each table what columns it has, in their order.
func TestThePageListsTheColumns(t *testing.T) {
	db := tables(t, 10, false)
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	for _, table := range []string{"events", "connections", "verdicts"} {
		_, section, ok := strings.Cut(string(text), "\n### "+table+"\n")
		require.True(t, ok, table)
		section, _, _ = strings.Cut(section, "\n### ")
		var said [][]string
		for _, m := range column.FindAllStringSubmatch(section, -1) {
			said = append(said, []string{m[1], m[2]})
		}
		_, are := rows(t, db, "SELECT column_name, column_type FROM (DESCRIBE FROM '"+table+".parquet')")
		require.Equal(t, are, said, table)
	}
}

// The page's queries give what they say.
func TestThePagesQueries(t *testing.T) {
	const n = 1000
	db := tables(t, n, false)
	bad := n / sample.ResetEvery
	want := map[string]func(t *testing.T, list [][]string){
		"the runs in a file": func(t *testing.T, list [][]string) {
			require.Len(t, list, 1)
			require.Contains(t, list[0][0], "web-1")
		},
		"causes, those with the most connections first": func(t *testing.T, list [][]string) {
			require.Len(t, list, sample.Verdicts)
			require.Equal(t, []string{"reset-sent", "error", "80", "2"}, list[0][:4])
			require.Equal(t, "read what came", list[0][6])
			require.Equal(t, "connect-refused", list[1][0])
		},
		"which programs' connections end badly, and how large a share": func(t *testing.T, list [][]string) {
			require.Len(t, list, 2) // of each host the one
			require.Equal(t, []string{sample.HostileSafe, "192.0.2.1", "5432", fmt.Sprint(bad), "100", "reset: " + sample.HostileSafe}, list[0][1:])
		},
		"what the kernel told of the examples of a verdict": func(t *testing.T, list [][]string) {
			require.Len(t, list, 2*2*sample.EventsEach)
			require.Equal(t, []string{"db-1", sample.Conn(1, 0)}, list[0][:2])
			require.Equal(t, []string{"state", "CLOSE", "SYN_SENT", "NULL", "[Process]"}, list[0][3:])
			require.Equal(t, []string{"rst-sent", "ESTABLISHED", "CLOSE", "TCP_ABORT_ON_CLOSE", "[]"}, list[sample.EventsEach-1][3:])
		},
		"how long handshakes took, by destination": func(t *testing.T, list [][]string) {
			// Those that are older than the trace are not counted.
			require.Equal(t, [][]string{{"192.0.2.1", "5432", fmt.Sprint(2 * (n - bad)), "0.100001", "0.100001", "0.100001"}}, list)
		},
		"how full the accept queues were, minute by minute": func(t *testing.T, list [][]string) {
			require.Len(t, list, 2)
			require.Equal(t, []string{"0.0.0.0", "80", "17", "16", "1"}, list[0][2:])
		},
		"why this host sent resets, and on whose behalf": func(t *testing.T, list [][]string) {
			require.Equal(t, [][]string{
				{"TCP_ABORT_ON_CLOSE", sample.HostileSafe, `3f1c\x00`, fmt.Sprint(2 * bad), fmt.Sprint(2 * bad)},
				{"NULL", "NULL", "NULL", "2", "0"}, // for a closed port
			}, list)
		},
	}
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	found := map[string]bool{}
	for _, m := range regexp.MustCompile("(?s)```sql\n-- (.*?)\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		name, query := m[1], m[2]
		t.Run(name, func(t *testing.T) {
			check := want[name]
			require.NotNil(t, check, "a query that nobody checks")
			_, list := rows(t, db, query)
			check(t, list)
		})
		found[name] = true
	}
	require.Len(t, found, len(want), "a query is missing from the page")
}
