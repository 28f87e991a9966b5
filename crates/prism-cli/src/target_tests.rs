use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn around(&self) -> Surroundings {
        Surroundings {
            contexts: Some(self.path().join("config/prism/admin.toml")),
            working_dir: self.path().to_owned(),
            ..Surroundings::default()
        }
    }

    fn data_dir(&self, name: &str) -> PathBuf {
        let folder = self.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("endpoints.json"), r#"{"data":"a:1","admin":"127.0.0.1:2","metrics":"a:3"}"#).unwrap();
        fs::write(folder.join("admin.token"), "prx_dir\n").unwrap();
        folder
    }

    fn context(&self) {
        let path = self.around().contexts.unwrap();
        let token_file = self.path().join("prod.token");
        fs::write(&token_file, "prx_prod").unwrap();
        let context = Context {
            endpoint: "prod.example".to_owned(),
            ca: PathBuf::from("/prod/ca.pem"),
            token_file: Some(token_file),
            user: Some("alice".to_owned()),
            ..Context::default()
        };
        Contexts { current: Some("prod".to_owned()), contexts: [("prod".to_owned(), context)].into() }
            .save(&path)
            .unwrap();
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {:?}", self.authority(), self.ca.display(), self.token, self.user)
    }
}

#[test]
fn the_data_directory_of_the_working_directory_is_found() {
    let folder = Folder::new();
    let data = folder.data_dir("prism-data");
    let target = resolve(&Connection::default(), &folder.around()).unwrap();
    assert_eq!(target.authority(), "127.0.0.1:2");
    assert_eq!((target.ca, target.token.as_str()), (data.join("ca.pem"), "prx_dir"));
}

#[test]
fn the_environment_moves_the_data_directory() {
    let folder = Folder::new();
    let around = Surroundings { data_dir: Some(folder.data_dir("elsewhere")), ..folder.around() };
    assert_eq!(resolve(&Connection::default(), &around).unwrap().token, "prx_dir");
}

#[test]
fn without_a_data_directory_the_current_context_is_used() {
    let folder = Folder::new();
    folder.context();
    let target = resolve(&Connection::default(), &folder.around()).unwrap();
    assert_eq!(format!("{target:?}"), "prod.example:8981 /prod/ca.pem prx_prod Some(\"alice\")");
}

#[test]
fn a_named_context_wins_over_the_data_directory() {
    let folder = Folder::new();
    folder.context();
    folder.data_dir("prism-data");
    let flags = Connection { context: Some("prod".to_owned()), ..Connection::default() };
    assert_eq!(resolve(&flags, &folder.around()).unwrap().token, "prx_prod");
}

#[test]
fn nothing_at_all_says_what_to_do() {
    let folder = Folder::new();
    let failure = resolve(&Connection::default(), &folder.around()).unwrap_err();
    assert_eq!(failure.exit(), Exit::Usage);
    assert!(failure.to_string().contains("context set"), "{failure}");
}

#[test]
fn a_data_directory_without_a_server_is_unreachable() {
    let folder = Folder::new();
    fs::create_dir(folder.path().join("prism-data")).unwrap();
    let failure = resolve(&Connection::default(), &folder.around()).unwrap_err();
    assert_eq!(failure.exit(), Exit::Unreachable);
    assert!(failure.to_string().contains("prism serve"), "{failure}");
}

#[test]
fn flags_alone_need_no_source() {
    let folder = Folder::new();
    let token_file = folder.path().join("t");
    fs::write(&token_file, "prx_flag").unwrap();
    let flags = Connection {
        endpoint: Some("https://[::1]:9/".to_owned()),
        ca: Some(PathBuf::from("ca")),
        token_file: Some(token_file),
        ..Connection::default()
    };
    assert_eq!(format!("{:?}", resolve(&flags, &folder.around()).unwrap()), "[::1]:9 ca prx_flag None");
}

#[test]
fn a_token_is_not_sent_to_a_server_of_another_ca() {
    let folder = Folder::new();
    folder.data_dir("prism-data");
    let flags = Connection {
        endpoint: Some("evil.example:1".to_owned()),
        ca: Some(PathBuf::from("evil.pem")),
        ..Connection::default()
    };
    assert!(resolve(&flags, &folder.around()).unwrap_err().to_string().contains("--ca is given without a token"));
    let around = Surroundings { token: Some("prx_env".to_owned()), ..folder.around() };
    assert_eq!(resolve(&flags, &around).unwrap().token, "prx_env");
}

#[test]
fn endpoints() {
    assert_eq!(parse_endpoint("a.example").unwrap(), ("a.example".to_owned(), 8981));
    assert_eq!(parse_endpoint("a.example:1").unwrap(), ("a.example".to_owned(), 1));
    assert_eq!(parse_endpoint("https://a.example:1/").unwrap(), ("a.example".to_owned(), 1));
    assert_eq!(parse_endpoint("[::1]").unwrap(), ("::1".to_owned(), 8981));
    for bad in ["", ":1", "http://a:1", "a:0", "a:65536", "a:b", "a b", "user@a:1", "a:1/path", "a:"] {
        assert!(parse_endpoint(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn tokens_are_one_word() {
    assert_eq!(check_token(" prx_a \n", "f").unwrap(), "prx_a");
    for bad in ["", "  \n", "two words", "ünï", "a\u{0}b"] {
        assert!(check_token(bad, "f").is_err(), "{bad:?}");
    }
}
