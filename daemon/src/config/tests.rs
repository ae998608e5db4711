//! The configuration as its users meet it: files, variables and flags in,
//! values, origins and complaints out.

use std::fs;

use ksi_protocol::system::ConfigChanges;

use super::*;

/// A user's file and all else that says something.
#[derive(Default)]
struct Given<'a> {
    file: &'a str,
    variables: &'a [(&'a str, &'a str)],
    sets: &'a [&'a str],
}

impl Given<'_> {
    fn load(&self) -> Result<Config, Invalid> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksi.toml");
        fs::write(&path, self.file).unwrap();
        let variables = self.variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let loaded = Config::load(&Sources {
            variables: variables.collect(),
            sets: self.sets.iter().map(|set| (*set).to_owned()).collect(),
            ..Sources::file(&path)
        });
        // Messages name the file by its whole path, which differs each time.
        let dir = format!("{}/", dir.path().display());
        loaded.map_err(|mut invalid| {
            for problem in &mut invalid.problems {
                problem.place = problem.place.replace(&dir, "");
            }
            invalid
        })
    }

    fn complaint(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

fn file(text: &str) -> Given<'_> {
    Given { file: text, ..Given::default() }
}

#[test]
fn the_shipped_manifest_is_valid_and_says_what_the_defaults_are() {
    let config = file("").load().unwrap();
    assert_eq!(config.daemon, Daemon::default());
    for (name, placement, enabled) in [
        ("echo", Placement::InProcess, true),
        ("completion", Placement::InProcess, true),
        ("llama", Placement::Child, true),
        ("echo_child", Placement::Child, false),
    ] {
        let plugin = &config.plugins[name];
        assert_eq!((plugin.placement, plugin.enabled), (placement, enabled), "{name}");
        assert_eq!(plugin.name, name);
    }
    assert_eq!(config.plugins["echo"].limits, Limits::default());
    assert_eq!(config.plugins["echo"].restart, Restart::of(Placement::InProcess));
    assert_eq!(config.plugins["llama"].config["slots"], 4);
    let policy = &config.events["llama:generate"];
    assert_eq!(policy.timeout, Some(Duration::from_secs(600)));
    assert_eq!((policy.delivery, policy.permission.as_str()), (Delivery::Live, "model.use"));
}

#[test]
fn every_shipped_plugin_may_emit_what_its_namespace_has_and_call_what_exists() {
    let config = file("").load().unwrap();
    for plugin in config.plugins.values() {
        let namespace = plugin.namespace.as_deref().unwrap_or(&plugin.name);
        assert!(
            plugin.emits.iter().all(|pattern| pattern.namespace() == Some(namespace) || plugin.keeps_work),
            "{plugin:?}"
        );
        for pattern in &plugin.may_call {
            assert!(config.events.keys().any(|event| pattern.matches(event)), "{pattern}");
        }
    }
}

#[test]
fn later_layers_win_and_every_value_knows_where_it_comes_from() {
    let config = Given {
        file: "[daemon]\nlog_level = \"warn\"\nlog_files = 7\nconnections_max = 5\n\
               [plugins.llama.config]\nthreads = 3\n",
        variables: &[
            ("KSI_DAEMON__LOG_FILES", "8"),
            ("KSI_DAEMON__CONNECTIONS_MAX", "6"),
            ("KSI_PLUGINS__LLAMA__CONFIG__THREADS", "1"),
            ("KSI_PLUGINS__LLAMA__CONFIG__DEFAULT_MODEL", "my model"),
            ("KSI_EVENTS__COMPLETION_REQUEST__TIMEOUT", "30s"),
            ("KSI_HOME", "/elsewhere"),
            ("OTHER__VARIABLE", "x"),
        ],
        sets: &["daemon.connections_max=7", "events.\"llama:load\".timeout = 1h", "daemon.connections_max=9"],
    }
    .load()
    .unwrap();
    assert_eq!(config.daemon.log_level, "warn");
    assert_eq!(config.daemon.log_files, 8);
    assert_eq!(config.daemon.connections_max, 9);
    assert_eq!(config.plugins["llama"].config["threads"], 1);
    assert_eq!(config.plugins["llama"].config["default_model"], "my model");
    assert_eq!(config.plugins["llama"].config["slots"], 4);
    assert_eq!(config.events["completion:request"].timeout, Some(Duration::from_secs(30)));
    assert_eq!(config.events["llama:load"].timeout, Some(Duration::from_secs(3600)));

    let origins = config.origins();
    for (key, end) in [
        ("daemon.log_level", "/ksi.toml:2"),
        ("daemon.log_files", "KSI_DAEMON__LOG_FILES"),
        ("daemon.connections_max", "--set daemon.connections_max"),
        ("daemon.threads", "default"),
        ("plugins.llama.config.threads", "KSI_PLUGINS__LLAMA__CONFIG__THREADS"),
        ("events.\"completion:request\".timeout", "KSI_EVENTS__COMPLETION_REQUEST__TIMEOUT"),
    ] {
        assert!(origins[key].ends_with(end), "{key}: {}", origins[key]);
    }
    let place = &origins["daemon.shutdown_grace"];
    let line: usize = place.strip_prefix("events.toml:").unwrap().parse().unwrap();
    assert!(SHIPPED.lines().nth(line - 1).unwrap().starts_with("shutdown_grace"), "{place}");
}

#[test]
fn variables_and_flags_are_read_as_what_their_key_expects() {
    let config = Given {
        variables: &[
            ("KSI_DAEMON__LOG_FORMAT", "json"),
            ("KSI_DAEMON__ALLOW_UIDS", "1000, 1001"),
            ("KSI_DAEMON__SHUTDOWN_GRACE", "1m 30s"),
            ("KSI_PLUGINS__ECHO_CHILD__ENABLED", "true"),
            ("KSI_PLUGINS__ECHO__CONFIG__LIST", "[1, \"two\"]"),
            ("KSI_PLUGINS__ECHO__CONFIG__TEXT", "1, two"),
            ("KSI_PLUGINS__ECHO__CONFIG__QUOTED", "\"1\""),
        ],
        sets: &[
            "plugins.echo.may_call=[\"llama:*\"]",
            "plugins.llama.may_call=echo:*,state:**",
            "daemon.threads=2",
        ],
        ..Given::default()
    }
    .load()
    .unwrap();
    assert_eq!(config.daemon.log_format, log::Format::Json);
    assert_eq!(config.daemon.allow_uids, [1000, 1001]);
    assert_eq!(config.daemon.shutdown_grace, Duration::from_secs(90));
    assert_eq!(config.daemon.threads, Some(2));
    assert!(config.plugins["echo_child"].enabled);
    let own = &config.plugins["echo"].config;
    assert_eq!(*own, serde_json::json!({"list": [1, "two"], "text": "1, two", "quoted": "1"}));
    assert_eq!(config.plugins["echo"].may_call, [Pattern::parse("llama:*").unwrap()]);
    assert_eq!(config.plugins["llama"].may_call.len(), 2);
}

/// A user's file, and a part of the one complaint about it.
const WRONG: &[(&str, &str)] = &[
    (
        "[plugins.llama]\nplacment = \"child\"",
        "ksi.toml:2:1: unknown key `plugins.llama.placment`\n  hint: did you mean `placement`?",
    ),
    ("[deamon]\nlog_level = \"info\"", "ksi.toml:1:2: unknown key `deamon`\n  hint: did you mean `daemon`?"),
    (
        "[daemon]\nxyzzy = 1",
        "ksi.toml:2:1: unknown key `daemon.xyzzy`\n  hint: known here: shutdown_grace, log_level",
    ),
    (
        "[daemon]\nlog_files = \"3\"",
        "ksi.toml:2:13: `daemon.log_files` is a string, expected a whole number from 0 to 100\n  hint: write it without quotes",
    ),
    (
        "[daemon]\nlog_files = 101",
        "ksi.toml:2:13: `daemon.log_files` is 101, expected a whole number from 0 to 100",
    ),
    ("[daemon]\nlog_files = -1", "is -1, expected a whole number from 0 to 100"),
    ("[daemon]\nlog_files = 1.5", "is a fractional number, expected a whole number"),
    (
        "[daemon]\nshutdown_grace = 5",
        "ksi.toml:2:18: `daemon.shutdown_grace` is a whole number, expected a duration\n  hint: durations are strings with a unit",
    ),
    ("[daemon]\nshutdown_grace = \"5\"", "is `5`, expected a duration\n  hint: durations"),
    ("[daemon]\nshutdown_grace = \"2h\"", "is `2h`, expected a duration from 0s to 1h"),
    (
        "[daemon]\nlog_level = \"inof\"",
        "ksi.toml:2:13: `daemon.log_level` is `inof`, expected one of off, error, warn, info, debug, trace\n  hint: did you mean `info`?",
    ),
    ("[daemon]\nlog_level = true", "`daemon.log_level` is a boolean, expected a string"),
    (
        "[daemon]\nlog_format = \"jsno\"",
        "is `jsno`, expected one of text, json\n  hint: did you mean `json`?",
    ),
    ("[daemon]\nallow_uids = 5", "is a whole number, expected a list of user ids"),
    ("[daemon]\nallow_uids = [1,\n -2]", "ksi.toml:3:2: `daemon.allow_uids` is -2, expected a whole number"),
    ("daemon = 3", "ksi.toml:1:10: `daemon` is a whole number, expected a table"),
    (
        "[plugins]\nllama = true",
        "ksi.toml:2:9: `plugins.llama` is a boolean, expected a table\n  hint: write [plugins.llama]",
    ),
    (
        "[plugins.lama]\nenabled = false",
        "ksi.toml:1:10: `plugins.lama` has no `library`\n  hint: did you mean `plugins.llama`? A new plugin needs a library",
    ),
    ("[plugins.Own]\nlibrary = \"x.so\"", "`plugins.Own` is no name for a plugin"),
    (
        "[plugins.own]\nlibrary = \"../x.so\"",
        "`plugins.own.library` is `../x.so`, expected the name of a file, or an absolute path",
    ),
    (
        "[plugins.echo]\nplacement = \"inprocess\"",
        "is `inprocess`, expected one of in-process, child\n  hint: did you mean `in-process`?",
    ),
    ("[plugins.echo]\nenabled = \"yes\"", "is a string, expected true or false"),
    (
        "[plugins.echo]\nmay_call = [\"llama:*\", \"NO\"]",
        "ksi.toml:2:24: `plugins.echo.may_call` has no event pattern at this place",
    ),
    (
        "[plugins.llama]\nrequire = \"L6\"",
        "`plugins.llama.require` is `L6`, expected one of L0, L1, L2, L3, L4, L5",
    ),
    (
        "[plugins.llama.sandbox]\nread = [\"models\"]",
        "ksi.toml:2:9: `plugins.llama.sandbox.read` names `models`, expected an absolute path",
    ),
    ("[plugins.llama.sandbox]\nwrite = [\"/\"]", "names the root, which grants everything"),
    ("[plugins.llama.sandbox]\nwrite = [\"/a/../b\"]", "names `/a/../b`, which leads back by `..`"),
    (
        "[plugins.llama.sandbox]\nnetwork = \"loopbak\"",
        "is `loopbak`, expected one of none, loopback\n  hint: did you mean `loopback`?",
    ),
    (
        "[plugins.llama.sandbox]\nnetwork = [443, 70000]",
        "ksi.toml:2:17: `plugins.llama.sandbox.network` is 70000",
    ),
    ("[plugins.llama.sandbox]\nnetwork = true", "expected none, loopback or a list of TCP ports"),
    (
        "[plugins.llama.sandbox]\ndisable = [\"limits\"]",
        "is `limits`, expected one of seccomp, landlock, namespaces, cgroup",
    ),
    (
        "[plugins.llama.sandbox]\nreads = []",
        "unknown key `plugins.llama.sandbox.reads`\n  hint: did you mean `read`?",
    ),
    ("[plugins.echo.sandbox]\nexec = true", "ksi.toml:1:15: `plugins.echo.sandbox` cannot hold in-process"),
    ("[plugins.echo]\nrequire = \"L1\"", "ksi.toml:2:11: `plugins.echo.require` cannot hold in-process"),
    (
        "[plugins.echo]\nnamespace = \"system\"",
        "is `system`, expected one segment of an event name that the daemon does not own",
    ),
    ("[plugins.echo_child]\nenabled = true\nnamespace = \"echo:x\"", "is `echo:x`, expected one segment"),
    (
        "[plugins.llama.limits]\nmemory = 5",
        "unknown key `plugins.llama.limits.memory`\n  hint: did you mean `memory_mb`?",
    ),
    (
        "[plugins.llama.restart]\nbackoff_min = \"1m\"",
        "ksi.toml:2:15: `plugins.llama.restart.backoff_min` is 1m, more than backoff_max, 30s",
    ),
    (
        "[plugins.second]\nlibrary = \"libplugin_echo.so\"",
        "ksi.toml:1:10: `plugins.second` and `plugins.echo` are both `libplugin_echo.so`, with one namespace between them\n  hint: give one of them a `namespace`",
    ),
    (
        "[plugins.second]\nlibrary = \"libplugin_echo.so\"\nnamespace = \"n\"\n[plugins.third]\nlibrary = \"x.so\"\nnamespace = \"n\"",
        "`plugins.third` and `plugins.second` both own the namespace `n`",
    ),
    (
        "[events.\"system:health\"]\ndelivery = \"durable\"",
        "ksi.toml:2:12: `events.\"system:health\".delivery` is `durable`, and the daemon answers it at once",
    ),
    (
        "[events.\"echo:say\"]\nretry.attempts = 2",
        "ksi.toml:2:1: `events.\"echo:say\".retry` is for durable events alone",
    ),
    (
        "[events.\"echo:say\"]\ndelivery = \"durable\"\nretry = { backoff_min = \"2m\" }",
        "ksi.toml:3:25: `events.\"echo:say\".retry.backoff_min` is 2m, more than backoff_max, 1m",
    ),
    (
        "[events.\"echo:say\"]\ndelivery = \"durable\"\nretry = { attempt = 1 }",
        "unknown key `events.\"echo:say\".retry.attempt`\n  hint: did you mean `attempts`?",
    ),
    (
        "[plugins.one]\nlibrary = \"one.so\"\nkeeps_work = true",
        "ksi.toml:1:10: `plugins.one` and `plugins.checkpoint` both keep work\n  hint: set enabled = false in one",
    ),
    (
        "[events.\"echo:new\"]\ntimeout = \"1s\"",
        "`events.\"echo:new\"` has no `permission`\n  hint: for example",
    ),
    ("[events.\"echo:say\"]\npermission = \"all\"", "is `all`, expected a permission such as `system.read`"),
    ("[events.\"echo:say\"]\ntimeout = \"25h\"", "is `25h`, expected a duration from 1ms to 1day"),
    ("[events.echo]\npermission = \"echo.use\"", "`events.echo` names no event"),
    ("[daemon]\nlog_level = debug", "ksi.toml:2:13: "),
    ("[daemon\n", "ksi.toml:1:8: "),
    ("[daemon]\nlog_files = 1\nlog_files = 2", "ksi.toml:3:1: duplicate key"),
    (
        "[daemon]\nlog_files = 99999999999999999999",
        "ksi.toml:2:13: the number 99999999999999999999 is too large",
    ),
    ("# ä\nä = 1", "ksi.toml:2:1: "),
    ("[plugins.echo.config]\nx = nan", "ksi.toml:2:5: nan is no finite number"),
];

#[test]
fn grants_are_read_from_files_variables_and_flags() {
    let config = Given {
        file: "[plugins.llama]\nrequire = \"L3\"\n[plugins.llama.sandbox]\nread = [\"/srv/models\"]\n\
               network = \"loopback\"\nlisten = [8080]\ngpu = true\ndisable = [\"cgroup\"]\n",
        variables: &[("KSI_PLUGINS__LLAMA__SANDBOX__NETWORK", "53,443")],
        sets: &["plugins.llama.sandbox.exec=true"],
    }
    .load()
    .unwrap();
    let llama = &config.plugins["llama"];
    let expected = Grants {
        read: vec!["/srv/models".into()],
        network: Network::Ports(vec![53, 443]),
        listen: vec![8080],
        exec: true,
        gpu: true,
        disable: vec![Layer::Cgroup],
        ..Grants::default()
    };
    assert_eq!((&llama.sandbox, llama.require), (&expected, Some(Layer::Landlock)));
    let loopback =
        Given { variables: &[("KSI_PLUGINS__LLAMA__SANDBOX__NETWORK", "loopback")], ..Given::default() };
    assert_eq!(loopback.load().unwrap().plugins["llama"].sandbox.network, Network::Loopback);
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_a_hint() {
    for (text, expected) in WRONG {
        let complaint = file(text).complaint();
        assert!(complaint.contains(expected), "{text}\n--- gave\n{complaint}\n--- expected\n{expected}");
        assert_eq!(complaint.matches("ksi.toml:").count(), 1, "{text}\n--- gave\n{complaint}");
    }
}

#[test]
fn variables_and_flags_are_blamed_by_their_names() {
    for (name, value, expected) in [
        (
            "KSI_DAEMON__LOG_FILES",
            "many",
            "KSI_DAEMON__LOG_FILES: `daemon.log_files` is `many`, expected a whole number from 0 to 100",
        ),
        (
            "KSI_DAEMON__LOGLEVEL",
            "info",
            "KSI_DAEMON__LOGLEVEL: unknown key `daemon.loglevel`\n  hint: did you mean `log_level`?",
        ),
        ("KSI_DEAMON__LOG_LEVEL", "info", "unknown key `deamon`\n  hint: did you mean `daemon`?"),
        ("KSI_DAEMON____LOG", "info", "a part of its name is empty"),
        (
            "KSI_DAEMON__LOG_LEVEL__X",
            "1",
            "KSI_DAEMON__LOG_LEVEL__X: `daemon.log_level` is a table, expected a string",
        ),
        ("KSI_PLUGINS__ECHO__LIMITS", "5", "`plugins.echo.limits` is a string, expected a table"),
        ("KSI_PLUGINS__ECHO__ENABLED", "yes", "is `yes`, expected true or false"),
    ] {
        let complaint = Given { variables: &[(name, value)], ..Given::default() }.complaint();
        assert!(complaint.contains(expected), "{name}={value}\n--- gave\n{complaint}");
    }
    for (set, expected) in [
        ("daemon.log_files=many", "--set daemon.log_files: `daemon.log_files` is `many`"),
        ("daemon.log_files", "--set daemon.log_files: it has no `=`\n  hint: write --set section.key=value"),
        ("=5", "--set : "),
        ("daemon..x=5", "--set daemon..x: "),
        ("events.\"a=b\".timeout=5s", "names no event"),
        ("x=5", "unknown key `x`"),
    ] {
        let complaint = Given { sets: &[set], ..Given::default() }.complaint();
        assert!(complaint.contains(expected), "{set}\n--- gave\n{complaint}");
    }
}

#[test]
fn a_variable_that_two_keys_fit_is_refused() {
    let text = "[events.\"a:b\"]\npermission = \"a.b\"\n[events.\"a-b:c\"]\npermission = \"a.b\"\n\
                [events.\"a:b-c\"]\npermission = \"a.b\"\n";
    let variables = [("KSI_EVENTS__A_B_C__TIMEOUT", "5s")];
    let complaint = Given { file: text, variables: &variables, ..Given::default() }.complaint();
    assert!(complaint.contains("may mean `a-b:c` or `a:b-c`"), "{complaint}");
}

#[test]
fn all_problems_of_all_layers_are_reported_at_once() {
    let invalid = Given {
        file: "[daemon]\nlog_files = \"x\"\nnope = 1\n[plugins.llama]\nplacement = \"moon\"\n",
        // Hides the first problem of the file, which is told all the same.
        variables: &[("KSI_DAEMON__LOG_FILES", "3"), ("KSI_DAEMON__THREADS", "0")],
        sets: &["daemon.log_level=loud"],
    }
    .load()
    .unwrap_err();
    let places: Vec<_> = invalid.problems.iter().map(|problem| problem.place.as_str()).collect();
    let expected =
        ["ksi.toml:2:13", "ksi.toml:3:1", "ksi.toml:5:13", "KSI_DAEMON__THREADS", "--set daemon.log_level"];
    assert_eq!(places, expected, "{invalid}");
}

#[test]
fn syntax_errors_do_not_hide_what_is_wrong_elsewhere() {
    let broken = Given { variables: &[("KSI_DAEMON__NOPE", "1")], ..file("[daemon]\nlog_level = \n= 5\n") };
    let complaint = broken.complaint();
    assert!(complaint.contains("ksi.toml:2:") && complaint.contains("ksi.toml:3:"), "{complaint}");
    assert!(complaint.contains("KSI_DAEMON__NOPE"), "{complaint}");
}

#[test]
fn files_that_cannot_be_read_are_named_and_an_absent_one_of_the_user_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert!(Config::load(&Sources::file(&at("absent.toml"))).is_ok());

    let with_events = Sources { events: Some(at("absent.toml")), ..Sources::file(&at("x.toml")) };
    let complaint = Config::load(&with_events).unwrap_err().to_string();
    assert!(complaint.contains("absent.toml: cannot be read: No such file"), "{complaint}");

    fs::write(at("binary.toml"), b"# fine\n\xff\xfe\n").unwrap();
    let complaint = Config::load(&Sources::file(&at("binary.toml"))).unwrap_err().to_string();
    assert!(complaint.contains("binary.toml: line 2 is not UTF-8"), "{complaint}");

    let complaint = Config::load(&Sources::file(dir.path())).unwrap_err().to_string();
    assert!(complaint.contains("no regular file"), "{complaint}");

    fs::write(at("large.toml"), " ".repeat(2 << 20)).unwrap();
    let complaint = Config::load(&Sources::file(&at("large.toml"))).unwrap_err().to_string();
    assert!(complaint.contains("larger than"), "{complaint}");
}

#[test]
fn another_manifest_takes_the_place_of_the_shipped_one() {
    let dir = tempfile::tempdir().unwrap();
    let events = dir.path().join("own.toml");
    fs::write(&events, "[plugins.only]\nlibrary = \"/opt/only.so\"\n").unwrap();
    let sources = Sources { events: Some(events.clone()), ..Sources::file(&dir.path().join("ksi.toml")) };
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.plugins.keys().collect::<Vec<_>>(), ["only"]);
    assert_eq!(config.plugins["only"].placement, Placement::Child);
    assert_eq!(config.daemon, Daemon::default());
    assert_eq!(config.origins()["plugins.only.library"], format!("{}:2", events.display()));
}

#[test]
fn what_is_shown_has_the_shape_of_the_files_and_can_be_read_again() {
    let config = file("[daemon]\nthreads = 2\n").load().unwrap();
    let shown = config.as_json();
    assert_eq!(shown["daemon"]["shutdown_grace"], "5s");
    assert_eq!(shown["plugins"]["llama"]["placement"], "child");
    assert_eq!(shown["plugins"]["llama"]["limits"]["memory_mb"], serde_json::Value::Null);
    assert_eq!(shown["plugins"]["echo"]["config"], serde_json::json!({}));
    assert_eq!(shown["events"]["completion:request"]["timeout"], "1day");

    let mut present = shown.clone();
    remove_nulls(&mut present);
    let again = file(&toml::to_string(&present).unwrap()).load().unwrap();
    assert_eq!(again.as_json(), shown);
}

fn remove_nulls(value: &mut serde_json::Value) {
    if let serde_json::Value::Object(table) = value {
        table.retain(|_, inner| !inner.is_null());
        table.values_mut().for_each(remove_nulls);
    }
}

#[test]
fn secrets_reach_the_plugin_and_nobody_else() {
    let text = "[plugins.echo.config]\napi_key = \"hush\"\nmax_tokens = 5\nkey_file = \"/etc/x\"\n\
                headers.token.value = \"hush\"\nlist = [{ password = \"hush\", name = \"open\" }]\n";
    let config = file(text).load().unwrap();
    assert_eq!(config.plugins["echo"].config["api_key"], "hush");
    let shown = config.as_json();
    let own = &shown["plugins"]["echo"]["config"];
    assert_eq!(own["api_key"], "***");
    assert_eq!(own["max_tokens"], 5);
    assert_eq!(own["key_file"], "/etc/x");
    assert_eq!(own["list"], serde_json::json!([{ "password": "***", "name": "open" }]));
    assert!(!shown.to_string().contains("hush"), "{shown}");
    let shown = |text: &str| {
        let config = file(&format!("[plugins.echo.config]\n{text}\n")).load().unwrap();
        config.as_json()["plugins"]["echo"]["config"].to_string()
    };
    for (text, expected) in [
        ("authorization = \"Bearer abcdef0123456789\"", r#"{"authorization":"***"}"#),
        ("header = \"Bearer abcdef0123456789\"", r#"{"header":"Bearer ***"}"#),
        ("pass = \"hush\"\ndb-pass = \"hush\"", r#"{"db-pass":"***","pass":"***"}"#),
        (
            "passphrase = \"hush\"\ncredentials.a = \"hush\"",
            r#"{"credentials":{"a":"***"},"passphrase":"***"}"#,
        ),
        ("url = [\"https://user:p4sswordlong@host\"]", r#"{"url":["https://***@host"]}"#),
        ("bypass = \"a\"\ncompass = \"b\"", r#"{"bypass":"a","compass":"b"}"#),
    ] {
        assert_eq!(shown(text), expected);
    }
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn changes_say_what_takes_effect_when() {
    let old = file("[daemon]\nlog_files = 1\n").load().unwrap();
    let new = file(
        "[daemon]\nlog_level = \"debug\"\nlog_files = 2\n[plugins.echo.config]\nx = 1\n\
         [events.\"echo:say\"]\ntimeout = \"1s\"\n",
    )
    .load()
    .unwrap();
    let changes = old.changes(&new);
    let changed = [
        "daemon.log_files",
        "daemon.log_level",
        "events.\"echo:say\".timeout",
        "plugins.echo.config",
        "plugins.echo.config.x",
    ];
    assert_eq!(changes.changed, changed);
    assert_eq!(changes.needs_restart, ["daemon.log_files"]);
    assert!(changes.plugins.iter().eq(["echo"]));
    assert_eq!(old.changes(&old), ConfigChanges::default());
}

#[test]
fn a_durable_event_says_how_its_work_is_carried_out() {
    let event = "[events.\"echo:say\"]\ndelivery = \"durable\"\nrepeat = true\nkeep = \"2h\"\n\
                 retry = { attempts = 2, backoff_max = \"3s\" }\n";
    let config = file(event).load().unwrap();
    assert!(config.plugins["checkpoint"].keeps_work && !config.plugins["echo"].keeps_work);
    let policy = &config.events["echo:say"];
    let expected = Policy {
        attempts: 2,
        backoff_max_ms: 3_000,
        timeout_ms: 10_000,
        keep_ms: 7_200_000,
        repeat: true,
        ..Policy::default()
    };
    assert_eq!((policy.delivery, policy.work.as_deref()), (Delivery::Durable, Some(&expected)));
    assert_eq!(config.events["system:health"].work, None);
    // One who is there and does not run is a choice, and none at all a mistake.
    file(&format!("[plugins.checkpoint]\nenabled = false\n{event}")).load().unwrap();
    let given =
        format!("[plugins.checkpoint]\nlibrary = \"x.so\"\nenabled = false\nkeeps_work = false\n{event}");
    let complaint = file(&given).complaint();
    assert!(
        complaint.contains("`events.\"echo:say\".delivery` is `durable`, and no plugin keeps work"),
        "{complaint}"
    );
}

#[test]
fn an_event_goes_on_while_all_is_frozen_by_its_permission_or_where_its_policy_says_so() {
    let frozen = |text: &str, event: &str| file(text).load().unwrap().events[event].frozen;
    for event in ["state:get", "plugin:list", "plugin:load", "token:revoke", "work:cancel"] {
        assert_eq!(frozen("", event), Frozen::GoesOn, "{event}");
    }
    assert_eq!([frozen("", "echo:say"), frozen("", "token:create")], [Frozen::Refused; 2]);
    assert_eq!(frozen("[events.\"echo:say\"]\nfrozen = \"goes_on\"\n", "echo:say"), Frozen::GoesOn);
    assert_eq!(frozen("[events.\"state:get\"]\nfrozen = \"refused\"\n", "state:get"), Frozen::Refused);
    let complaint = file("[events.\"echo:say\"]\nfrozen = true\n").complaint();
    assert!(complaint.contains("events.\"echo:say\".frozen") && complaint.contains("goes_on"), "{complaint}");
}

#[test]
fn nobody_is_called_owner_but_whoever_runs_the_daemon() {
    let uid = nix::unistd::geteuid().as_raw();
    let user = |uid: u32| format!("[identity.users.owner]\nuid = {uid}\n");
    let complaint = file(&user(uid + 1)).complaint();
    assert!(complaint.contains("ksi.toml:1") && complaint.contains("does not run the daemon"), "{complaint}");
    assert_eq!(file(&user(uid)).load().unwrap().identity.users["owner"].uid, uid);
}

#[test]
fn an_event_under_another_namespace_has_the_policy_of_its_declared_name() {
    let config = file("[events.\"other:say\"]\npermission = \"other.use\"\n").load().unwrap();
    assert_eq!(config.policy("echo_child:say", "echo:say").unwrap().permission, "echo.use");
    assert_eq!(config.policy("other:say", "echo:say").unwrap().permission, "other.use");
    assert_eq!(config.policy("none:at", "all:here"), None);
}

#[test]
fn the_corpus_of_files_is_understood_or_refused_with_a_reason() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/config");
    let (mut understood, mut refused) = (0, 0);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let absent = folder.join("no such file");
        let as_manifest = Sources { events: Some(path.clone()), ..Sources::file(&absent) };
        for sources in [Sources::file(&path), as_manifest] {
            match Config::load(&sources) {
                Ok(_) => understood += 1,
                Err(invalid) => {
                    assert!(!invalid.to_string().is_empty(), "{}", path.display());
                    refused += 1;
                }
            }
        }
    }
    assert!(understood > 0 && refused >= 10, "{understood} understood, {refused} refused");
}

#[test]
fn names_of_any_length_are_refused_without_being_compared() {
    // To compare these two would take a terabyte.
    let long = "a".repeat(400_000);
    let longer = format!("{long}b");
    let complaint = file(&format!("[plugins.{long}]\n[plugins.{longer}]\n")).complaint();
    assert!(complaint.contains("is no name for a plugin"));
}
