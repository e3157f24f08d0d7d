//! The login of the agent's account, as a run uses it: seen from the private home, masked, taken
//! back.
//! Must not put a login into an event or an environment.

use dispatch_core::{
    config::{AgentProfile, Login},
    event::Kind,
    outcome::Failure,
    secret::Secret,
    task::Wrap,
};

use super::{Cut, Stopped, Walk};
use crate::logins::{Account, LoginError};

impl Walk {
    /// The login of the agent's account, when somebody has logged in there.
    pub(super) fn login<'a>(&'a self, agent: &'a AgentProfile) -> Option<(Account, &'a Login)> {
        let (name, login) = agent.account(&self.job.task.spec.agent)?;
        let account = Account::of(&self.ctx.settings.data, name);
        account.exists().then_some((account, login))
    }

    /// The home is there by now, so the login of the agent's account can be seen from it.
    pub(super) fn link_login(&self, profile: &AgentProfile) -> Result<(), Stopped> {
        let Some((account, login)) = self.login(profile) else {
            return Ok(());
        };
        if self.job.task.spec.placement.wrap == Wrap::Host && !account.is_plain() {
            let dir = account.dir().display();
            let reason = format!(
                "{dir} holds a link, and without a fence the agent would follow it; look who made \
                 it, remove it, and `dispatch login` again"
            );
            return Err(Failure::Start { reason }.into());
        }
        let linked = account.link(login, &self.ctx.trees.home(&self.job.task));
        linked.map_err(|error| {
            let reason = words(&error);
            Failure::Start { reason }.into()
        })
    }

    pub(super) fn login_secrets(&self, agent: &AgentProfile) -> Vec<Secret> {
        let found = self.login(agent);
        found.map_or_else(Vec::new, |(account, login)| account.secrets(login))
    }

    /// A CLI that wrote its login past our link would else have renewed it for this task alone.
    pub(super) async fn take_back_login(&self, profile: &AgentProfile) -> Result<(), Cut> {
        let Some((account, login)) = self.login(profile) else {
            return Ok(());
        };
        let text = match account.take_back(login, &self.ctx.trees.home(&self.job.task)) {
            Ok(moved) if moved.is_empty() => return Ok(()),
            Ok(moved) => format!(
                "the agent wrote {} in its own home; it was moved to its account's login",
                moved.join(", ")
            ),
            Err(error) => format!(
                "a login that the agent renewed could not be kept ({}); `dispatch login` makes a \
                 new one",
                words(&error)
            ),
        };
        self.tell(Kind::Noted { text }).await
    }
}

/// An error with its cause.
pub(super) fn words(error: &LoginError) -> String {
    use std::error::Error as _;
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}
