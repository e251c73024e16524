//! Where a node's API is.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use tonic::transport::{self, Channel, Uri};

/// A connection that a dead host leaves open is found out within this and [`KEEP_ALIVE_TIMEOUT`].
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than a SYN and one repetition take in a data centre; a host that is down must not eat the whole deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a node's API is: `host:port`, `http://host:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(String);

/// Not an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is no endpoint: {reason}; use host:port, http://host:port or unix:/path")]
pub struct BadEndpoint {
    text: String,
    reason: &'static str,
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let bad = |reason| BadEndpoint { text: text.chars().take(120).collect(), reason };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self(format!("unix:{path}")))
            } else {
                Err(bad("the path of a socket must be absolute"))
            };
        }
        if text.starts_with("https:") {
            return Err(bad("TLS is not supported"));
        }
        let authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let uri: Uri = format!("http://{authority}/").parse().map_err(|_| bad("it cannot be read"))?;
        if uri.port_u16().is_none_or(|port| port == 0) {
            return Err(bad("the port is missing"));
        }
        if uri.path() != "/" || uri.query().is_some() || uri.host().is_none_or(str::is_empty) || authority.contains('@')
        {
            return Err(bad("it is more, or less, than a host and a port"));
        }
        Ok(Self(format!("http://{authority}")))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.strip_prefix("http://").unwrap_or(&self.0))
    }
}

impl Endpoint {
    /// A channel that connects when it is used first, and again whenever it has to.
    pub(crate) fn channel(&self) -> Result<Channel, BadEndpoint> {
        let endpoint = transport::Endpoint::from_shared(self.0.clone())
            .map_err(|_| BadEndpoint { text: self.0.clone(), reason: "it cannot be read" })?;
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .tcp_nodelay(true)
            .connect_lazy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read() {
        for (text, shown) in [
            ("192.0.2.1:7401", "192.0.2.1:7401"),
            ("http://node-1.example:7401", "node-1.example:7401"),
            ("http://[2001:db8::1]:7401/", "[2001:db8::1]:7401"),
            ("unix:/run/vipd/vipd.sock", "unix:/run/vipd/vipd.sock"),
            ("unix:///run/vipd/vipd.sock", "unix:/run/vipd/vipd.sock"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "cannot be read"),
            ("node-1", "port is missing"),
            ("node-1:0", "port is missing"),
            ("node-1:99999", ""),
            ("https://node-1:7401", "TLS"),
            ("http://node-1:7401/path", "more, or less"),
            ("user@node-1:7401", "more, or less"),
            ("unix:relative.sock", "absolute"),
            ("a b:1", "cannot be read"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
