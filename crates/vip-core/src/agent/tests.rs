use super::*;

mod lifecycle;
mod properties;
mod world;
