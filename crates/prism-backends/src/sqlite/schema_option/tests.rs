use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn accept(script: &str) -> Result<()> {
    rehearse(&Schema::parse(script)?, Path::new("/nonexistent/prism.db"))
}

#[test]
fn tables_and_indices_are_accepted() {
    for good in [
        "",
        " ; -- nothing\n ;",
        "CREATE TABLE IF NOT EXISTS items (id TEXT PRIMARY KEY, name TEXT, quantity INTEGER, price REAL)",
        "create table if not exists a (x INTEGER PRIMARY KEY AUTOINCREMENT, y TEXT NOT NULL UNIQUE) strict;
         create unique index if not exists a_y on a (lower(y), x desc) where y is not null;",
        "CREATE TABLE IF NOT EXISTS \"a\" (x TEXT PRIMARY KEY DEFAULT 'CREATE VIEW; DROP', \"order\" TEXT) WITHOUT ROWID, STRICT",
        "CREATE TABLE IF NOT EXISTS a (x TEXT CHECK (length(x) < 9 AND lower(x) <> 'x' AND CAST(x AS INTEGER) > 0))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT DEFAULT (lower(hex(randomblob(16)))), at TEXT DEFAULT CURRENT_TIMESTAMP)",
        "CREATE TABLE IF NOT EXISTS a (x TEXT DEFAULT (lower(hex(randomblob(4))) || '-' || hex(randomblob(2))) CHECK (trim(x) <> ''),
            at TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')), kind TEXT CHECK (kind IN ('a', 'b', 'c')), \"like\" TEXT)",
        "CREATE TABLE IF NOT EXISTS a (id INTEGER PRIMARY KEY);
         CREATE TABLE IF NOT EXISTS b (a INTEGER REFERENCES a (id) ON DELETE RESTRICT ON UPDATE NO ACTION)",
        "/* c */ CREATE /* c */ TABLE -- c\n IF NOT EXISTS a(x);;",
    ] {
        accept(good).unwrap_or_else(|refused| panic!("{good}: {refused}"));
    }
}

#[test]
fn anything_else_is_refused() {
    for bad in [
        // Other statements.
        "SELECT 1",
        "DROP TABLE a",
        "INSERT INTO a VALUES (1)",
        "PRAGMA writable_schema = 1",
        "ATTACH 'other.db' AS other",
        "VACUUM INTO 'copy.db'",
        "ALTER TABLE a ADD COLUMN x",
        "BEGIN",
        "COMMIT",
        "ROLLBACK TO operation",
        "EXPLAIN CREATE TABLE IF NOT EXISTS a (x)",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "CREATE VIEW IF NOT EXISTS a AS SELECT * FROM _prism_kv",
        "CREATE TRIGGER IF NOT EXISTS a AFTER INSERT ON b BEGIN DELETE FROM b; END",
        "CREATE VIRTUAL TABLE IF NOT EXISTS a USING fts5 (x)",
        // Other forms of the allowed ones.
        "CREATE TABLE a (x)",
        "CREATE INDEX a ON b (x)",
        "CREATE TEMP TABLE IF NOT EXISTS a (x)",
        "CREATE TEMPORARY TABLE IF NOT EXISTS a (x)",
        "CREATE TABLE IF NOT EXISTS a AS SELECT * FROM sqlite_schema",
        "CREATE TABLE IF NOT EXISTS temp.a (x)",
        "CREATE TABLE IF NOT EXISTS main.a (x)",
        "CREATE TABLE IF NOT EXISTS main . a (x)",
        "CREATE INDEX IF NOT EXISTS main.i ON a (x)",
        // Names that are not the user's.
        "CREATE TABLE IF NOT EXISTS _prism_kv (x)",
        "CREATE TABLE IF NOT EXISTS \"_PRISM_x\" (x)",
        "CREATE TABLE IF NOT EXISTS [_prism_x] (x)",
        "CREATE TABLE IF NOT EXISTS `_prism_x` (x)",
        "CREATE TABLE IF NOT EXISTS '_prism_x' (x)",
        "CREATE TABLE IF NOT EXISTS sqlite_sequence (name, seq)",
        "CREATE TABLE IF NOT EXISTS \"a b\" (x)",
        "CREATE TABLE IF NOT EXISTS \"a\"\"b\" (x)",
        "CREATE TABLE IF NOT EXISTS \"\" (x)",
        "CREATE INDEX IF NOT EXISTS i ON _prism_kv (key)",
        "CREATE INDEX IF NOT EXISTS _prism_i ON a (x)",
        "CREATE TABLE IF NOT EXISTS a (x REFERENCES _prism_kv (key))",
        "CREATE TABLE IF NOT EXISTS a (x, FOREIGN KEY (x) REFERENCES '_prism_kv' (key))",
        "CREATE TABLE IF NOT EXISTS a (x REFERENCES /* c */ \"_prism_kv\" (key))",
        "CREATE TABLE IF NOT EXISTS a (x REFERENCES \u{feff}_prism_kv (key))",
        // Expressions that reach elsewhere, or make something out of nothing.
        "CREATE TABLE IF NOT EXISTS a (x CHECK (x IN (SELECT 1)))",
        "CREATE TABLE IF NOT EXISTS a (x DEFAULT (load_extension('x')))",
        "CREATE TABLE IF NOT EXISTS a (x DEFAULT (zeroblob(1000000000)))",
        "CREATE TABLE IF NOT EXISTS a (x DEFAULT (randomblob(1000000000)))",
        "CREATE TABLE IF NOT EXISTS a (x DEFAULT (randomblob(16 * 1000000)))",
        "CREATE TABLE IF NOT EXISTS a (x DEFAULT (\"randomblob\"(1000000000)))",
        "CREATE TABLE IF NOT EXISTS a (x DEFAULT (hex(hex(hex('x')))))",
        "CREATE TABLE IF NOT EXISTS a (x DEFAULT (printf('%1000000000d', 1)))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT, y TEXT GENERATED ALWAYS AS (x || x))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT, y TEXT AS (x || x) STORED)",
        // Expressions that take minutes for one row.
        "CREATE TABLE IF NOT EXISTS a (x TEXT CHECK (x LIKE '%@%'))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT, y TEXT CHECK (x NOT like y))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT CHECK (x GLOB '*a*b*'))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT CHECK (x REGEXP 'a'))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT CHECK (x MATCH 'a'))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT, y TEXT CHECK (instr(x, y) = 0))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT, y TEXT CHECK (\"instr\" (x, y) = 0))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT, y TEXT CHECK (like(x, y)))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT, y TEXT CHECK ([glob](x, y)))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT DEFAULT (replace(replace('aa', 'a', 'aa'), 'a', 'aa')))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT, y TEXT CHECK (trim(x, y) = ''))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT, y TEXT CHECK (ltrim(lower(x), y) = ''))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT DEFAULT (rtrim('aaaaaaaa', 'ba')))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT CHECK (length(x || x || x) > 0))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT DEFAULT ('a') CHECK (length(x || x || x) > 0))",
        "CREATE TABLE IF NOT EXISTS a (x TEXT CHECK (strftime(x, 'now') <> ''))",
        // Writes that change other rows.
        "CREATE TABLE IF NOT EXISTS a (x PRIMARY KEY ON CONFLICT REPLACE)",
        "CREATE TABLE IF NOT EXISTS a (x REFERENCES a (x) ON DELETE CASCADE)",
        "CREATE TABLE IF NOT EXISTS a (x REFERENCES a (x) ON UPDATE /* c */ SET NULL)",
        "CREATE TABLE IF NOT EXISTS a (x REFERENCES a (x) DEFERRABLE INITIALLY DEFERRED)",
        // Several, hidden, broken.
        "CREATE TABLE IF NOT EXISTS a (x); DROP TABLE a",
        "CREATE TABLE IF NOT EXISTS a (x) /* ; */ ; -- ;\n DROP TABLE a",
        "CREATE TABLE IF NOT EXISTS a (x /* ",
        "CREATE TABLE IF NOT EXISTS a (x",
        "CREATE TABLE IF NOT EXISTS a (x))",
        "CREATE TABLE IF NOT EXISTS a (x) WITHOUT DROP",
        "CREATE INDEX IF NOT EXISTS i ON missing (x)",
        "CREATE TABLE IF NOT EXISTS a (x); CREATE INDEX IF NOT EXISTS i ON a (y COLLATE missing)",
        "CREATE TABLE IF NOT EXISTS a (?1)",
        "CREATE TABLE IF NOT EXISTS a (x)\0",
    ] {
        let refused = accept(bad).expect_err(bad);
        assert_eq!(refused.fields().first().map(|field| field.field.as_str()), Some(FIELD), "{bad}: {refused}");
    }
}

#[test]
fn the_message_names_the_statement_and_what_sqlite_says() {
    let refused = accept("CREATE TABLE IF NOT EXISTS a (x); CREATE INDEX IF NOT EXISTS i ON b (x)").unwrap_err();
    assert_eq!(refused.fields()[0].description, "statement 2: no such table: main.b");
}

#[test]
fn the_authorizer_alone_denies_what_the_tokens_would() {
    for bad in [
        "CREATE TABLE IF NOT EXISTS _prism_x (x)",
        "CREATE TEMP TABLE IF NOT EXISTS a (x)",
        "CREATE TABLE IF NOT EXISTS a AS SELECT 1",
        "CREATE VIEW a AS SELECT 1",
        "CREATE VIRTUAL TABLE a USING fts5 (x)",
        "CREATE TRIGGER a AFTER INSERT ON b BEGIN DELETE FROM b; END",
        "ATTACH ':memory:' AS other",
        "PRAGMA user_version = 1",
        "INSERT INTO b VALUES (1)",
        "DELETE FROM b",
        "DROP TABLE b",
        "SELECT * FROM b",
        "SELECT load_extension('x')",
    ] {
        let mut scratch = Connection::open_in_memory().unwrap();
        scratch.execute_batch("CREATE TABLE b (x)").unwrap();
        scratch.authorizer(Some(authorize)).unwrap();
        let refused = scratch.execute_batch(bad).expect_err(bad);
        assert_eq!(
            refused.sqlite_error_code(),
            Some(rusqlite::ErrorCode::AuthorizationForStatementDenied),
            "{bad}: {refused}"
        );
    }
}

#[test]
fn a_namespace_has_a_bounded_number_of_tables() {
    let many: String =
        (0..=MAX_OBJECTS).fold(String::new(), |all, n| all + &format!("CREATE TABLE IF NOT EXISTS t{n} (x);"));
    let refused = accept(&many).unwrap_err();
    assert!(refused.message().contains("1024"), "{refused}");
}

#[test]
fn what_a_row_costs_is_bounded_over_all_schemas() {
    let check = |times: usize| format!("CHECK ({})", vec!["x <> upper(x)"; times].join(" AND "));
    let table = |times| format!("CREATE TABLE IF NOT EXISTS a (x TEXT {});", check(times));
    accept(&table(33)).unwrap();
    let index = |n: usize, what: &str| format!("CREATE INDEX IF NOT EXISTS i{n} ON a ({what});");
    let indices = |count: usize| (0..count).map(|n| index(n, "x")).collect::<String>();
    accept(&(table(1) + &indices(16))).unwrap();
    for bad in [
        table(34),
        table(33) + &index(0, "lower(x)"),
        table(1) + &indices(17),
        table(1) + &index(0, &["x"; 33].join(", ")),
        format!("CREATE TABLE IF NOT EXISTS a (x TEXT, UNIQUE ({}))", ["x"; 33].join(", ")),
    ] {
        assert_eq!(accept(&bad).expect_err(&bad).fields()[0].field, FIELD);
    }
    let connection = Connection::open_in_memory().unwrap();
    apply(&Schema::parse(&table(33)).unwrap(), &connection).unwrap();
    let more = Schema::parse(&index(0, "lower(x)")).unwrap();
    assert!(apply(&more, &connection).is_err(), "what others have made counts");
}

/// Pieces of SQL that an attacker would put together.
const PIECES: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS",
    "CREATE INDEX IF NOT EXISTS",
    "CREATE TEMP TABLE IF NOT EXISTS",
    "CREATE VIEW v AS",
    "CREATE TRIGGER t AFTER INSERT ON a BEGIN",
    "END",
    "a",
    "b",
    "\"a\"",
    "[a]",
    "'a'",
    "_prism_kv",
    "\"_prism_kv\"",
    "main",
    "temp",
    ".",
    "(",
    ")",
    "(x)",
    "(x, y)",
    "x",
    ",",
    ";",
    "--",
    "\n",
    "/*",
    "*/",
    "'",
    "\"",
    "`",
    "]",
    "AS",
    "SELECT * FROM _prism_kv",
    "DELETE FROM _prism_kv",
    "DROP TABLE _prism_kv",
    "INSERT INTO _prism_kv VALUES (2)",
    "ON",
    "REFERENCES",
    "CHECK",
    "DEFAULT",
    "STRICT",
    "WITHOUT ROWID",
    "PRAGMA user_version = 9",
    "COMMIT",
    "\u{feff}",
    "\0",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Where a schema is applied there is no authorizer: what the tokens let through must be harmless by itself.
    #[test]
    fn nothing_that_parses_touches_what_is_not_the_users(
        begin in proptest::bool::ANY,
        pieces in proptest::collection::vec(select(PIECES), 1..14),
    ) {
        let head = if begin { "CREATE TABLE IF NOT EXISTS a (x) ; " } else { "CREATE TABLE IF NOT EXISTS a (x " };
        let script = format!("{head}{}", pieces.join(" "));
        if let Ok(schema) = Schema::parse(&script) {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch("CREATE TABLE _prism_kv (key); INSERT INTO _prism_kv VALUES (1); BEGIN").unwrap();
            let _ = apply(&schema, &connection);
            prop_assert!(!connection.is_autocommit());
            let kept: (i64, i64) =
                connection.query_row("SELECT count(*), sum(key) FROM _prism_kv", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            prop_assert_eq!(kept, (1, 1));
            for object in objects(&connection).unwrap().into_iter().filter(|object| object.name != "_prism_kv") {
                prop_assert!(object.sql.is_none() || is_table_name(&object.name), "{}", object.name);
                prop_assert!(is_table_name(&object.table), "{}", object.table);
                prop_assert!(matches!(object.kind.as_str(), "table" | "index"));
            }
        }
    }
}
