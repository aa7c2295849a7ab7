//! Expands a recipe's `docker = true`.
//!
//! The engine is a service that starts when the job first connects to its socket. Before that it
//! costs a guest only disk space and modules.

use super::recipe::{RecipeContent, UserName};

/// The recipe content to add.
const PROFILE: &str = include_str!("docker.toml");

/// The group that may use the engine; its package creates it. A member can become root of the
/// guest.
const GROUP: &str = "docker";

/// Adds the engine to a recipe that sets `docker = true`.
///
/// # Errors
///
/// Only if the built-in profile is invalid; a recipe can't cause it.
pub(super) fn expand(content: &mut RecipeContent) -> Result<(), toml::de::Error> {
    if !content.docker {
        return Ok(());
    }
    let profile: RecipeContent = toml::from_str(PROFILE)?;
    let group = UserName::try_from(GROUP.to_owned()).map_err(serde::de::Error::custom)?;
    content.packages.extend(profile.packages);
    content.kernel.guest_modules.extend(profile.kernel.guest_modules);
    content.services.extend(profile.services);
    for user in &mut content.users {
        if !user.groups.contains(&group) {
            user.groups.push(group.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> RecipeContent {
        let mut content: RecipeContent = toml::from_str(text).unwrap();
        expand(&mut content).unwrap();
        content
    }

    #[test]
    fn a_recipe_without_docker_is_unchanged() {
        let content = expanded("[[users]]\nname='a'\nuid=7\nhome='/home/a'\nshell='/bin/sh'");
        assert!(content.packages.is_empty() && content.services.is_empty());
        assert!(content.kernel.guest_modules.is_empty() && content.users[0].groups.is_empty());
    }

    #[test]
    fn the_recipes_own_entries_stay() {
        let content = expanded(
            "docker = true\npackages = ['git']\n[kernel]\nguest_modules = ['fuse']\n\
            [[users]]\nname='a'\nuid=7\nhome='/home/a'\nshell='/bin/sh'\ngroups=['audio']",
        );
        assert_eq!(content.packages[0].as_str(), "git");
        assert!(content.packages.iter().any(|package| package.as_str() == "docker.io"));
        assert_eq!(content.kernel.guest_modules[0].as_str(), "fuse");
        let groups: Vec<_> = content.users[0].groups.iter().map(UserName::as_str).collect();
        assert_eq!(groups, ["audio", "docker"]);
    }

    #[test]
    fn the_service_is_dockers_own_socket_with_the_networks_mtu() {
        let content = expanded("docker = true");
        let [service] = content.services.as_slice() else { panic!("{:?}", content.services) };
        // The path that the command line connects to: /var/run is /run.
        assert_eq!((service.socket.as_str(), service.group.as_str()), ("/run/docker.sock", GROUP));
        let options = service.command.iter().filter(|argument| argument.contains("{mtu}"));
        assert_eq!(options.count(), 2, "for its own network and for those that a workflow makes");
    }
}
