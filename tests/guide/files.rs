//! The files that pages show: settings and recipes, loaded as Mayfly loads them.

use std::fs;

use mayfly::image::recipe::Recipe;

use crate::blocks::{of, pages};
use crate::place::{Place, settings};
use crate::support::{PATIENCE, Running};

#[test]
fn each_file_says_what_it_is() {
    let mut files = 0;
    for page in pages() {
        for block in of(&page).iter().filter(|block| block.language == "toml") {
            let known = ["<!-- settings -->", "<!-- recipe -->"].contains(&block.comment.as_str());
            assert!(known, "{}: settings or a recipe?", block.place());
            files += 1;
        }
    }
    assert!(files > 4, "{files}");
}

#[test]
fn settings_of_pages_are_good() {
    let place = Place::with_store();
    place.secret("github-app.pem", "-----BEGIN RSA PRIVATE KEY-----");
    for page in pages() {
        let blocks = of(&page);
        if settings(&blocks).next().is_none() {
            continue;
        }
        place.settle(&blocks);
        let check = "mayfly config check --config mayfly.toml";
        let ending = Running::start(&mut place.script("check.sh", check)).finish(PATIENCE);
        assert_eq!(ending.code(), 0, "{page}: {ending:?}");
    }
}

#[test]
fn recipes_of_pages_are_good() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.toml");
    let base = fs::read_to_string(crate::blocks::project().join("images/base/image.toml")).unwrap();
    let profiles = crate::blocks::project().join("images/profiles");
    let base = base.replace("../profiles", profiles.to_str().unwrap());
    for page in pages() {
        for block in of(&page).iter().filter(|block| block.comment == "<!-- recipe -->") {
            // Parts of a recipe, which has the rest.
            fs::write(&path, format!("{base}\n{}", block.text)).unwrap();
            let recipe = Recipe::load(&path, &[]);
            assert!(recipe.is_ok(), "{}: {:?}", block.place(), recipe.err());
        }
    }
}
