//! The plans of all statements on large tables: none walks through one.

use super::super::statements::PLANNED;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_walks_through_a_large_table() {
    let server = Server::start();
    let store = server.open(1, Options { keep_history: Duration::from_secs(1 << 40), ..Options::default() }).await;
    let client = store.shared.connections.connect().await.unwrap();
    let fill = "INSERT INTO current SELECT '/r/' || (CASE WHEN i % 3 = 0 THEN 'b' ELSE 'a' END) || '/' || i, i, i, 0,
            CASE WHEN i % 100 = 0 THEN 4000000000000 + i ELSE 0 END, 'value' FROM generate_series(1, 100000) i;
        INSERT INTO history SELECT i, 0, i, '/r/' || (CASE WHEN i % 3 = 0 THEN 'b' ELSE 'a' END) || '/' || i
            FROM generate_series(1, 100000) i;
        UPDATE head SET revision = 100000;
        UPDATE compaction SET revision = 50000, pruned = 40000;
        ANALYZE current; ANALYZE history;";
    client.batch_execute(fill).await.unwrap();
    // The database must come to these plans by itself, whether it knows the arguments or not.
    client.batch_execute("SET enable_seqscan = on").await.unwrap();
    let mut bad = Vec::new();
    for mode in ["force_custom_plan", "force_generic_plan"] {
        client.batch_execute(&format!("SET plan_cache_mode = {mode}")).await.unwrap();
        for (number, (sql, arguments)) in PLANNED.iter().enumerate() {
            // Reading everything, as a backup does, may well walk through the table.
            if arguments.starts_with("'',") && mode == "force_custom_plan" {
                continue;
            }
            let prepare = format!("PREPARE s{number} AS {sql}");
            client.batch_execute(&prepare).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
            let rows = client.query(&format!("EXPLAIN EXECUTE s{number}({arguments})"), &[]).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            let walks = |line: &String| {
                let table = ["on current", "on history"].iter().any(|t| line.contains(t));
                table && line.contains("Seq Scan") && !line.contains("Index")
            };
            if plan.iter().any(walks) {
                bad.push(format!("{mode}: {sql}\n{}", plan.join("\n")));
            }
            client.batch_execute(&format!("DEALLOCATE s{number}")).await.unwrap();
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n\n"));
}

/// Removing old history goes on where it ended: what was removed before is not looked at again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_removed_from_its_front_in_steps() {
    let server = Server::start();
    let store = server.open(1, Options { keep_history: Duration::from_secs(1 << 40), ..Options::default() }).await;
    for _ in 0..30 {
        let batch = (0..100).map(|i| put(&format!("/{i}"), "v", Expect::Any)).collect();
        store.commit(batch).await.unwrap();
    }
    store.compact(Revision(25)).await.unwrap();
    let client = store.shared.connections.session().await;
    let mut left = (0, 0);
    for _ in 0..100 {
        let row = client.query_one("SELECT min(revision), count(*) FROM history", &[]).await.unwrap();
        left = (row.get::<_, i64>(0), row.get::<_, i64>(1));
        if left.1 == 500 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(left, (26, 500));
    let pruned: i64 = client.query_one("SELECT pruned FROM compaction", &[]).await.unwrap().get(0);
    assert_eq!(pruned, 25);
}
