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

fn secret(text: &str) -> Secret {
    Secret::parse(text, "test").unwrap()
}

fn token(target: &Target) -> &str {
    match &target.credential {
        Credential::Token(token) => token.reveal(),
        other => panic!("{other:?}"),
    }
}

fn shown(target: &Target) -> String {
    format!("{} {} {} {:?}", target.authority(), target.ca.display(), token(target), target.user)
}

#[test]
fn the_data_directory_of_the_working_directory_is_found() {
    let folder = Folder::new();
    let data = folder.data_dir("prism-data");
    let target = resolve(&Connection::default(), &folder.around()).unwrap();
    assert_eq!(target.authority(), "127.0.0.1:2");
    assert_eq!((token(&target), &target.ca), ("prx_dir", &data.join("ca.pem")));
}

#[test]
fn the_environment_moves_the_data_directory() {
    let folder = Folder::new();
    let around = Surroundings { data_dir: Some(folder.data_dir("elsewhere")), ..folder.around() };
    assert_eq!(token(&resolve(&Connection::default(), &around).unwrap()), "prx_dir");
}

#[test]
fn without_a_data_directory_the_current_context_is_used() {
    let folder = Folder::new();
    folder.context();
    let target = resolve(&Connection::default(), &folder.around()).unwrap();
    assert_eq!(shown(&target), "prod.example:8981 /prod/ca.pem prx_prod Some(\"alice\")");
}

#[test]
fn a_named_context_wins_over_the_data_directory() {
    let folder = Folder::new();
    folder.context();
    folder.data_dir("prism-data");
    let flags = Connection { context: Some("prod".to_owned()), ..Connection::default() };
    assert_eq!(token(&resolve(&flags, &folder.around()).unwrap()), "prx_prod");
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
    assert_eq!(shown(&resolve(&flags, &folder.around()).unwrap()), "[::1]:9 ca prx_flag None");
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
    assert!(resolve(&flags, &folder.around()).unwrap_err().to_string().contains("--ca is given without a credential"));
    let around = Surroundings { token: Some(secret("prx_env")), ..folder.around() };
    assert_eq!(token(&resolve(&flags, &around).unwrap()), "prx_env");
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
fn two_sources_or_two_credentials_are_refused() {
    let folder = Folder::new();
    folder.context();
    let data = folder.data_dir("prism-data");
    let both = Connection { context: Some("prod".to_owned()), data_dir: Some(data), ..Connection::default() };
    assert_eq!(resolve(&both, &folder.around()).unwrap_err().exit(), Exit::Usage);
    let certificate =
        Connection { cert: Some(PathBuf::from("c")), key: Some(PathBuf::from("k")), ..Connection::default() };
    let around = Surroundings { token: Some(secret("prx_env")), ..folder.around() };
    assert!(resolve(&certificate, &around).unwrap_err().to_string().contains("two credentials"));
    for half in [Connection { key: None, ..certificate.clone() }, Connection { cert: None, ..certificate.clone() }] {
        assert!(resolve(&half, &folder.around()).unwrap_err().to_string().contains("needs"));
    }
}

#[test]
fn a_certificate_needs_no_token() {
    let folder = Folder::new();
    let data = folder.data_dir("prism-data");
    fs::remove_file(data.join("admin.token")).unwrap();
    let flags = Connection { cert: Some(PathBuf::from("c")), key: Some(PathBuf::from("k")), ..Connection::default() };
    let target = resolve(&flags, &folder.around()).unwrap();
    let identity = Identity { cert: PathBuf::from("c"), key: PathBuf::from("k") };
    assert_eq!(target.credential, Credential::Certificate(identity));
}

#[test]
fn a_context_has_one_credential() {
    let folder = Folder::new();
    let path = folder.around().contexts.unwrap();
    let context = Context {
        endpoint: "prod.example".to_owned(),
        cert: Some(PathBuf::from("c")),
        key: Some(PathBuf::from("k")),
        ..Context::default()
    };
    let save = |context: &Context| {
        let contexts = [("prod".to_owned(), context.clone())].into();
        Contexts { current: Some("prod".to_owned()), contexts }.save(&path).unwrap();
        resolve(&Connection::default(), &folder.around())
    };
    assert!(matches!(save(&context).unwrap().credential, Credential::Certificate(_)));
    let login = Context { oidc: Some(crate::context::Oidc::default()), cert: None, key: None, ..context.clone() };
    assert!(matches!(save(&login).unwrap().credential, Credential::Login(_)));
    let two = Context { oidc: login.oidc, ..context.clone() };
    assert!(save(&two).unwrap_err().to_string().contains("a certificate and a login"));
    let half = Context { key: None, ..context.clone() };
    assert!(save(&half).unwrap_err().to_string().contains("only one of"));
    let none = context.without_credentials();
    assert!(save(&none).unwrap_err().to_string().contains("no credential"));
}

#[test]
fn logs_are_remembered_by_the_name_that_is_used() {
    let folder = Folder::new();
    folder.context();
    let data = folder.data_dir("prism-data");
    fs::write(data.join("ca.pem"), "certificate").unwrap();
    let around = folder.around();
    let of = |name: LogName, ca: &Path| Memory::of(around.contexts.as_deref(), &name, ca);
    let by = |flags: &Connection| (resolve(flags, &around).unwrap().memory, memory(flags, &around).unwrap());

    let here = of(LogName::DataDir(data.canonicalize().unwrap()), &data.join("ca.pem"));
    assert_eq!(by(&Connection::default()), (here.clone(), here.clone()));
    let prod = Connection { context: Some("prod".to_owned()), ..Connection::default() };
    let context = of(LogName::Context("prod".to_owned()), Path::new("/prod/ca.pem"));
    assert_eq!(by(&prod), (context.clone(), context));
    let elsewhere = Connection { endpoint: Some("[::1]:7".to_owned()), ..prod };
    let endpoint = of(LogName::Endpoint("[::1]:7".to_owned()), Path::new("/prod/ca.pem"));
    assert_eq!(by(&elsewhere), (endpoint.clone(), endpoint));
    // A stopped server has no endpoints.json.
    fs::remove_file(data.join("endpoints.json")).unwrap();
    let stopped = Connection { data_dir: Some(data), ..Connection::default() };
    assert_eq!(memory(&stopped, &around).unwrap(), here);
}
