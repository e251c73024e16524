//! Identities: small newtypes, so that a term is never taken for an epoch.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A node of the cluster. Never reused: a node with a wiped disk is a new node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fencing token of an assignment: the log index of the entry that made it. Only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One leader's reign. A term alone does not name it: two nodes may stand in one term.
///
/// Ordered by term, then by node, as votes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Leadership {
    /// Raft term.
    pub term: u64,
    /// The node that leads, or stands, in it.
    pub node: NodeId,
}

impl fmt::Display for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {} of node {}", self.term, self.node)
    }
}

/// A name is not usable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the name {name:?} is not valid: {reason}; use 1 to 63 of the characters a-z A-Z 0-9 . _ - and begin with a letter or digit"
)]
pub struct NameError {
    /// What was given.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

fn check_name(name: &str) -> Result<(), NameError> {
    let fail = |reason| Err(NameError { name: name.chars().take(80).collect(), reason });
    let Some(first) = name.chars().next() else {
        return fail("it is empty");
    };
    if name.len() > 63 {
        return fail("it is longer than 63 bytes");
    }
    if !first.is_ascii_alphanumeric() {
        return fail("it does not begin with a letter or digit");
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        return fail("it holds another character");
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                check_name(name)?;
                Ok(Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                check_name(&name)?;
                Ok(Self(name))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type! {
    /// The name of a VIP, unique in the cluster.
    VipName
}
name_type! {
    /// The name of a cluster; nodes of different names refuse each other.
    ClusterName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "web-1", "Web_2.example", "0"] {
            assert!(good.parse::<VipName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<VipName>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<VipName>("\"a b\"").is_err());
    }

    #[test]
    fn leaderships_are_ordered_as_votes_are() {
        let at = |term, node| Leadership { term, node: NodeId(node) };
        assert!(at(1, 9) < at(2, 1));
        assert!(at(2, 1) < at(2, 3));
    }
}
