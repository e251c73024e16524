//! Any text is a configuration whose values fit together, or is refused with problems that name a line there is.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;

#[rustfmt::skip] // formatted where it belongs
#[path = "../../crates/vipd/src/config.rs"]
#[allow(dead_code, reason = "the daemon reads more of it than is checked here")]
mod config;

use config::{Config, ConfigError, Loaded, ParseError, parse};

fuzz_target!(|text: &str| {
    let path = std::path::PathBuf::from("vipd.toml");
    match parse(text) {
        Ok(Loaded { config, warnings }) => {
            assert!(warnings.iter().all(|warning| !warning.is_empty()));
            check(&config);
        }
        Err(ParseError::Syntax(source)) => {
            let _ = format!("{source} {}", ConfigError::Syntax { path, source: source.clone() });
        }
        Err(ParseError::Invalid(problems)) => {
            assert!(!problems.is_empty(), "refused without a reason");
            let lines = text.matches('\n').count() + 1;
            for problem in &problems {
                assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{problem}");
                assert!(!problem.key.is_empty() && !problem.text.is_empty(), "{problem:?}");
            }
            let _ = ConfigError::Invalid { path, problems }.to_string();
        }
    }
});

/// What the rest of the daemon takes for granted.
fn check(config: &Config) {
    let margin = config.lease.margin();
    assert!(config.lease.lease > margin, "a lease that leaves nothing: {:?}", config.lease);
    assert!(config.heartbeat * 3 <= config.lease.lease - margin, "heartbeat {:?}", config.heartbeat);
    assert!(config.heartbeat >= Duration::from_millis(5));
    assert!(config.lease.voter_lease() >= config.lease.lease);
    assert!(config.address_lifetime >= config.lease.lease * 2);
    assert!(config.announce_burst.is_sorted() && config.announce_burst.first() == Some(&Duration::ZERO));
    assert!(config.announce_refresh >= Duration::from_millis(100));
    assert!(config.realtime_priority <= 99);
    assert!(config.node.0 != 0 && config.peer_listen.port() != 0);
    assert!(config.api_listen.is_none_or(|api| api.port() != 0 && api != config.peer_listen));
    for path in [&config.data_dir, &config.api_socket, &config.pin_root] {
        assert!(path.is_absolute(), "{path:?}");
    }
    assert!(config.initial_members.is_empty() || config.initial_members.contains_key(&config.node));
    assert!(config.initial_members.keys().all(|id| id.0 != 0));
    for (at, vip) in config.initial_vips.iter().enumerate() {
        assert_eq!(vip.clone().validate().as_ref(), Ok(vip));
        for other in &config.initial_vips[..at] {
            assert!(other.name != vip.name && other.address != vip.address, "{vip:?} {other:?}");
        }
        assert_ne!(vip.address, config.peer_listen.ip(), "a VIP on a node's own address");
    }
}
