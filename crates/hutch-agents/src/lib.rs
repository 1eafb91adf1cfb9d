//! The agents as data: one TOML file each, built in or the user's own, and what a file resolves to.
//!
//! ```text
//!   src/builtin/claude.toml ─┐
//!                            ├▶ AgentConfig ──▶ AgentSpec ──▶ command line, services, variables, seeds
//!   agents/claude.toml ──────┘  (what a person wrote)          (resolved and checked)
//!   recipes/claude/  ──▶ NpmRecipe: what its template has beside the base
//! ```
//!
//! Nothing here touches the network or a sandbox: the command reads the catalogue, asks for a [`Launch`] and passes it on.

mod catalogue;
mod config;
mod nearest;
mod recipe;
mod seed;
mod spec;

pub use catalogue::{Agents, AgentsError};
pub use config::{ConfigError, Origin};
pub use nearest::nearest;
pub use recipe::{NpmRecipe, Recipe};
pub use seed::{Seed, SeedAction, SeedFormat, Situation};
pub use spec::{AgentSpec, CredentialState, Launch};
