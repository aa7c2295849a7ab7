//! What a recipe's `docker = true` stands for (pure).
//!
//! The engine is a service that nobody has started when the job begins: it costs a guest the room
//! on the disk and the modules, and starts when the job first connects to its socket.

use super::recipe::{Content, UserName};

/// The parts of the recipe that it adds.
const PROFILE: &str = include_str!("docker.toml");

/// The group that may use the engine, which its package makes. A member can become root of the
/// guest by it.
const GROUP: &str = "docker";

/// Adds the engine to a recipe that asks for it.
///
/// # Errors
///
/// None that a recipe could cause: the profile is a part of this program.
pub(super) fn expand(content: &mut Content) -> Result<(), toml::de::Error> {
    if !content.docker {
        return Ok(());
    }
    let profile: Content = toml::from_str(PROFILE)?;
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

    fn expanded(text: &str) -> Content {
        let mut content: Content = toml::from_str(text).unwrap();
        expand(&mut content).unwrap();
        content
    }

    #[test]
    fn a_recipe_that_asks_for_nothing_gets_nothing() {
        let content = expanded("[[users]]\nname='a'\nuid=7\nhome='/home/a'\nshell='/bin/sh'");
        assert!(content.packages.is_empty() && content.services.is_empty());
        assert!(content.kernel.guest_modules.is_empty() && content.users[0].groups.is_empty());
    }

    #[test]
    fn what_the_recipe_says_itself_stays() {
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
        // What the command line connects to: /var/run is /run.
        assert_eq!((service.socket.as_str(), service.group.as_str()), ("/run/docker.sock", GROUP));
        let asks = service.command.iter().filter(|argument| argument.contains("{mtu}"));
        assert_eq!(asks.count(), 2, "for its own network and for those that a workflow makes");
    }
}
