//! Loads the settings files and recipes that pages show, as Mayfly loads them.

use std::fs;

use mayfly_image::recipe::Recipe;

use crate::blocks::{page_blocks, pages};
use crate::page_host::{PageHost, settings};
use crate::support::{Running, TIMEOUT};

#[test]
fn each_file_says_what_it_is() {
    let mut files = 0;
    for page in pages() {
        for block in page_blocks(&page).iter().filter(|block| block.language == "toml") {
            let known = ["<!-- settings -->", "<!-- recipe -->"].contains(&block.comment.as_str());
            assert!(known, "{}: not marked as settings or recipe", block.location());
            files += 1;
        }
    }
    assert!(files > 4, "{files}");
}

#[test]
fn settings_of_pages_are_good() {
    let page_host = PageHost::with_store();
    page_host.write_secret("github-app.pem", "-----BEGIN RSA PRIVATE KEY-----");
    for page in pages() {
        let blocks = page_blocks(&page);
        if settings(&blocks).next().is_none() {
            continue;
        }
        page_host.write_settings(&blocks);
        let check = "mayfly config check --config mayfly.toml";
        let ending = Running::start(&mut page_host.script("check.sh", check)).finish(TIMEOUT);
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
        for block in page_blocks(&page).iter().filter(|block| block.comment == "<!-- recipe -->") {
            // The block is only a part of a recipe; `base` provides the rest.
            fs::write(&path, format!("{base}\n{}", block.text)).unwrap();
            let recipe = Recipe::load(&path, &[]);
            assert!(recipe.is_ok(), "{}: {:?}", block.location(), recipe.err());
        }
    }
}
