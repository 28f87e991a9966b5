use super::*;

#[test]
fn flags_win_over_the_file() {
    let base = ClientConfig {
        name: "a".to_owned(),
        version: "1".to_owned(),
        namespace: "shop".to_owned(),
        backend: Some(BackendConfig {
            r#type: BackendType::Memory.into(),
            options: [("x".to_owned(), "1".to_owned()), ("y".to_owned(), "2".to_owned())].into(),
            pool: None,
        }),
        ..ClientConfig::default()
    };
    let input =
        Input { version: Some("2".to_owned()), options: vec![parse_option("y=3=4").unwrap()], ..Input::default() };
    let config = input.over(base);
    let backend = config.backend.clone().unwrap();
    assert_eq!((config.name.as_str(), config.version.as_str()), ("a", "2"));
    assert_eq!(backend.r#type, i32::from(BackendType::Memory));
    assert_eq!((backend.options["x"].as_str(), backend.options["y"].as_str()), ("1", "3=4"));
    assert!(parse_option("=x").is_err());
    let text = sheet(Some(&config)).render("");
    assert!(text.contains("option y:") && text.contains("3=4") && text.contains("memory"), "{text}");
    assert!(table(&[config]).contains("shop"));
}
