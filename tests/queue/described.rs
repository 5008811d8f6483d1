//! What `make queries` has written down is what PostgreSQL says of the schema as it is.

use super::cluster;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};
use std::fs;
use std::path::Path;

#[tokio::test]
async fn every_query_is_described_as_the_schema_has_it() {
    let (_store, url) = cluster::store().await;
    let mut connection = cluster::connect(&url).await;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let mut count = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let written: Value =
            serde_json::from_slice(&fs::read(entry.unwrap().path()).unwrap()).unwrap();
        let query = written["query"].as_str().unwrap().to_owned();
        let described = (&mut connection).describe(AssertSqlSafe(query.clone()).into_sql_str());
        let described = serde_json::to_value(described.await.unwrap()).unwrap();
        // Which columns may be null is found out from plans, which differ between versions.
        for part in ["columns", "parameters"] {
            assert_eq!(
                described[part], written["describe"][part],
                "run `make queries`: {query}"
            );
        }
        count += 1;
    }
    assert!(count > 10, "{count}");
}
