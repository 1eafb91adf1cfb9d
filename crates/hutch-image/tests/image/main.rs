//! The whole way to a guest image and to a template, with tools that only play the distribution's.

mod agent;
mod attacks;
mod built;
mod elf;
mod guest;
mod template;
mod world;
