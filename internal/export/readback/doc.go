// Package readback reads with DuckDB what package export wrote as Parquet. It is
// a module of its own, since the database is large and only this test needs it.
package readback
