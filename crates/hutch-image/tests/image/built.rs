//! Templates offered to a build, and what comes back: rows T1 and T2 of the reference's checklist, without the build.

use std::io::Read as _;

use hutch_image::{BaseImage, Offer, Reference, Template, TemplateError};
use hutch_layer::{Limits, tar};

use crate::attacks::{self, docker_archive, file, load};
use crate::world::{Steps, World, whole};

/// A template of these layers, each with a file of that name.
fn template(world: &World, name: &str, layers: &[&str]) -> Template {
    let layers: Vec<Vec<u8>> =
        layers.iter().map(|layer| attacks::tar(&[file(layer, layer.as_bytes())])).collect();
    let path = world.file("given.tar", &docker_archive(&layers, &[name]));
    load(world, &path).expect("an image that is right").remove(0)
}

fn offer(world: &World, engine: &Template, bases: &[&Template]) -> Result<Offer, TemplateError> {
    let bases: Vec<BaseImage> = bases
        .iter()
        .map(|base| BaseImage { name: base.name.clone(), template: (*base).clone() })
        .collect();
    Offer::new(&world.images(), engine, &bases, &Steps::default())
}

/// The placeholders of the first base, lowest first.
fn placeholders(offer: &Offer) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut reader = tar::Reader::new(offer.archive.as_slice(), Limits::default());
    while let Some(entry) = reader.next().expect("an archive of ours") {
        let mut content = Vec::new();
        reader.read_to_end(&mut content).expect("an archive of ours");
        let name = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
        match name.rsplit_once('.') {
            Some((_, "tar")) => all.push(content),
            _ => break,
        }
    }
    all
}

/// What the builder gives back.
fn take(world: &World, offer: &Offer, layers: &[Vec<u8>]) -> Result<Template, TemplateError> {
    let path = world.file("saved.tar", &docker_archive(layers, &["mine:v1"]));
    let names = [Reference::parse("mine:v1").expect("a name")];
    offer.take(&world.images(), &path, &names, &Steps::default())
}

#[test]
fn only_what_is_new_becomes_a_layer() {
    let world = World::new();
    let engine = template(&world, "engine", &["a"]);
    let base = template(&world, "base", &["a", "b"]);
    let offer = offer(&world, &engine, &[&base]).unwrap();
    assert_eq!(offer.builder.digest, base.digest, "it stands on the engine");
    let disks: Vec<usize> = offer.mounts.iter().map(|mount| mount.layer).collect();
    assert_eq!(disks, [0, 1]);
    let mut layers = placeholders(&offer);
    assert_eq!(layers.len(), 2);
    layers.push(attacks::tar(&[file("new", b"new")]));
    let made = take(&world, &offer, &layers).unwrap();
    assert_eq!(made.layers[..2], base.layers);
    assert_eq!((made.layers.len(), made.name.as_str()), (3, "mine:v1"));
    // Nothing new but the configuration.
    let same = take(&world, &offer, &layers[..2]).unwrap();
    assert_eq!(same.layers, base.layers);
}

#[test]
fn what_the_engine_is_told_is_an_image() {
    let world = World::new();
    let engine = template(&world, "engine", &["a"]);
    let base = template(&world, "base", &["a", "b"]);
    let offer = offer(&world, &engine, &[&base, &engine]).unwrap();
    assert_eq!(offer.mounts.len(), 2, "the engine's layer is in both at the same place");
    let path = world.file("offer.tar", &offer.archive);
    let loaded = load(&world, &path).unwrap();
    assert_eq!((loaded.len(), loaded[0].layers.len()), (2, 2));
    assert_eq!(loaded[0].config, base.config);
}

#[test]
fn templates_that_stand_on_something_else_lie_below_the_engine() {
    let world = World::new();
    let engine = template(&world, "engine", &["a"]);
    let others = [
        template(&world, "one", &["a", "b"]),
        template(&world, "two", &["c", "d"]),
        template(&world, "three", &["c", "e"]),
    ];
    let offer = offer(&world, &engine, &others.each_ref()).unwrap();
    let layers = &offer.builder.layers;
    assert_eq!((layers.len(), layers.last()), (5, engine.layers.last()));
    for mount in &offer.mounts {
        assert!(mount.layer < layers.len() && mount.chain.len() == 64, "{mount:?}");
    }
    assert_eq!(offer.mounts.len(), 5);
    assert!(offer.builder.config == engine.config);
}

#[test]
fn more_layers_than_a_machine_has_room_for_are_refused() {
    let world = World::new();
    let engine = template(&world, "engine", &["a"]);
    let names = ["1", "2", "3", "4", "5", "6", "7", "8"].map(|name| [name, "x"]);
    let others: Vec<Template> =
        names.iter().map(|layers| template(&world, layers[0], layers)).collect();
    let error = offer(&world, &engine, &others.iter().collect::<Vec<_>>()).unwrap_err();
    assert!(whole(&error).contains("no room for more"), "{}", whole(&error));
}

#[test]
fn a_builder_that_lies_gets_no_layer_of_others() {
    let world = World::new();
    let engine = template(&world, "engine", &["a"]);
    let base = template(&world, "base", &["a", "b"]);
    let offer = offer(&world, &engine, &[&base]).unwrap();
    let placeholders = placeholders(&offer);
    // In another order they are files like any others, of no length.
    let turned: Vec<Vec<u8>> = placeholders.iter().rev().cloned().collect();
    let made = take(&world, &offer, &turned).unwrap();
    assert!(made.layers.iter().all(|layer| !base.layers.contains(layer)));
    // What is above the base is checked as every layer is.
    let mut layers = placeholders;
    layers.push(attacks::tar(&[file("../../escape", b"x")]));
    let error = take(&world, &offer, &layers).unwrap_err();
    assert!(whole(&error).contains("mine:v1"), "{}", whole(&error));
    let cut = world.file("cut.tar", &docker_archive(&layers, &[])[..700]);
    offer.take(&world.images(), &cut, &[], &Steps::default()).unwrap_err();
}
