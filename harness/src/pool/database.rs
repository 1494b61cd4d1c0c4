//! The database's part of a topology's state: what is in it, and the way back to what was at first.

use sqlx::{Connection as _, PgConnection, Row as _};

use super::state::State;
use crate::topology::{Topology, TopologyError};

/// A line for everything that is defined in the database, and for each setting that somebody made.
const DEFINITIONS: &str = "
SELECT format('%s %I.%I %s', c.relkind, n.nspname, c.relname, (
         SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN '!' ELSE '' END, ', ' ORDER BY a.attnum)
         FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)) AS line
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
UNION ALL SELECT 'trigger ' || pg_get_triggerdef(oid) || ' ' || tgenabled::text FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT format('constraint %s %s', conrelid::regclass, pg_get_constraintdef(c.oid))
  FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
UNION ALL SELECT format('function %s %s', p.oid::regprocedure, md5(p.prosrc))
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
UNION ALL SELECT 'database ' || datname FROM pg_database
UNION ALL SELECT format('role %s %s %s', rolname, rolsuper, rolcanlogin) FROM pg_roles
UNION ALL SELECT format('setting %s = %s', name, setting) FROM pg_settings
 WHERE source IN ('configuration file', 'database', 'user', 'database user', 'command line', 'environment variable')
UNION ALL SELECT format('sequence %s.%s %s', schemaname, sequencename, last_value) FROM pg_sequences";

const TABLES: &str = "
SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
 WHERE schemaname !~ '^pg_' AND schemaname <> 'information_schema' ORDER BY 1";

/// Ends what others have open, so that no lock of theirs is waited for.
const ALONE: &str = "
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";

/// Reads it: a line for each definition, and for each table with the digest of its rows.
pub(crate) async fn read(topology: &Topology) -> Result<Vec<String>, TopologyError> {
    let mut database = topology.database().await?;
    let failed = || TopologyError::database("read what is in the database");
    let rows = sqlx::query(DEFINITIONS)
        .fetch_all(&mut database)
        .await
        .map_err(failed())?;
    let lines: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
    let mut lines = lines.map_err(failed())?;
    for table in tables(&mut database).await.map_err(failed())? {
        lines.push(content(&mut database, &table).await.map_err(failed())?);
    }
    database.close().await.map_err(failed())?;
    lines.sort();
    Ok(lines)
}

async fn tables(database: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let rows = sqlx::query(TABLES).fetch_all(database).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

async fn content(database: &mut PgConnection, table: &str) -> Result<String, sqlx::Error> {
    // The name is quoted by the database itself.
    let query = format!("SELECT count(*), md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM {table} t");
    let row = sqlx::query(sqlx::AssertSqlSafe(query))
        .fetch_one(database)
        .await?;
    let (count, digest): (i64, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(format!("rows {table} {count} {}", digest.unwrap_or_default()))
}

/// Brings it back to `baseline`: the rows of tables that were empty go, those of recorded versions among them. What
/// else differs is for the comparison to find.
pub(crate) async fn clean(topology: &Topology, baseline: &State) -> Result<(), TopologyError> {
    let mut database = topology.database().await?;
    let failed = || TopologyError::database("clean the database");
    sqlx::query(ALONE)
        .execute(&mut database)
        .await
        .map_err(failed())?;
    sqlx::raw_sql("SET lock_timeout = '5s'")
        .execute(&mut database)
        .await
        .map_err(failed())?;
    for table in tables(&mut database).await.map_err(failed())? {
        let was = baseline.lines("database");
        let now = content(&mut database, &table).await.map_err(failed())?;
        if !was.contains(&now) && was.contains(&format!("rows {table} 0 ")) {
            let truncate = format!("TRUNCATE {table} RESTART IDENTITY CASCADE");
            sqlx::raw_sql(sqlx::AssertSqlSafe(truncate))
                .execute(&mut database)
                .await
                .map_err(failed())?;
        }
    }
    database.close().await.map_err(failed())
}
