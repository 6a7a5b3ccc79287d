//! Answers the API's calls.

use std::path::{Path, PathBuf};

use steer_core::config::policy_to_toml;
use steer_core::domains::Domain;
use steer_core::engine::Rejected;
use steer_core::name::Name;
use steer_core::pattern::{CgroupPattern, UnitName, glob};
use steer_core::policy::{self, Match, Policy, PolicyError};
use steer_core::state::Event;
use steer_core::suggest::nearest;
use tracing::{debug, info};

use super::access::Authority;
use super::files::{self, DropIn};
use super::runs::is_run;
use super::{Daemon, Look};
use crate::api::error::ApiError;
use crate::api::methods::{Reply, Request, SetPolicy, UnsetPolicy, UnsetReply};
use crate::api::server::{Call, Caller};
use crate::api::types::{LocalNetworks, Otherwise};
use crate::cgroup::{Handle, id_of};
use crate::reconcile::chain;

impl Daemon {
    pub(super) async fn call(&mut self, call: Call) {
        if self.dirty {
            // What a call is about may have happened just now: a domain that is a file's is to be known as
            // such before anybody is permitted to use it.
            self.converge_and_log(Look::Nothing).await;
        }
        let caller = &call.caller;
        let authority = self.authority(caller);
        self.access.greet(&authority, self.engine.state());
        let touches = matches!(
            call.request,
            Request::SetPolicy(_) | Request::UnsetPolicy(_) | Request::Prefer(_)
        );
        if touches {
            self.sessions.begin_call();
        }
        let mut result = match call.request {
            Request::Run(run) => return self.run(caller, run, call.reply).await,
            Request::Explain(asked) => self.explain(caller, asked).await,
            Request::ListFlows(asked) => {
                return self.ask_for_flows(caller, &authority, &asked, call.reply);
            }
            Request::Move(moved) => return self.move_process(caller, moved, call.reply).await,
            Request::SetPolicy(set) => self.set_policy(&authority, set).await,
            Request::UnsetPolicy(unset) => self.unset_policy(&authority, unset).await,
            Request::Prefer(prefer) => self.prefer(caller, &authority, prefer).await,
            Request::Watch => return self.watch(call.caller, authority, call.reply),
            Request::Resolve(asked) => {
                return self.resolve(caller, &authority, &asked, call.reply);
            }
            Request::CheckDomain(check) => self.check_domain(&check.name),
            Request::ListPolicies => {
                let seen = self.seen(caller, &authority);
                Ok(Reply::Policies(self.policy_views(&seen)))
            }
            Request::ShowPolicy(show) => self.show_policy(caller, &authority, &show.name),
            Request::ListDomains => Ok(Reply::Domains(self.domain_views())),
            Request::ShowDomain(show) => self.show_domain(&show.name),
            Request::Reload => match authority.administrator("have the files read again") {
                Ok(()) => self.reload().await.map(Reply::Reloaded),
                Err(error) => Err(error),
            },
            Request::Status => {
                let seen = self.seen(caller, &authority);
                let all = authority == Authority::Administrator;
                Ok(Reply::Status(Box::new(self.status_view(&seen, all))))
            }
        };
        if let Ok(reply) = &mut result {
            self.add_accounts(&authority, reply);
        }
        match result {
            Ok(reply) if touches => self.sessions.answer(reply, call.reply),
            result => {
                self.sessions.end_call();
                call.reply.end(result);
            }
        }
    }

    fn show_policy(
        &self,
        caller: &Caller,
        authority: &Authority,
        name: &str,
    ) -> Result<Reply, ApiError> {
        let policy = self
            .find_policy(name)
            .filter(|policy| self.sees(caller, authority, policy))
            .ok_or_else(|| self.no_policy(authority, name.to_owned()))?;
        Ok(Reply::Policy(Box::new(self.full_policy_view(policy))))
    }

    /// A plain user is told of its own policies alone.
    pub(super) fn no_policy(&self, authority: &Authority, name: String) -> ApiError {
        let known = self.engine.state().policies();
        let known = known.filter(|policy| authority.owns(policy));
        let meant = nearest(&name, known.map(|policy| policy.name.as_str()));
        ApiError::NoSuchPolicy {
            meant: meant.map(str::to_owned),
            name,
        }
    }

    fn show_domain(&self, name: &str) -> Result<Reply, ApiError> {
        let domain = self.find_domain(name)?;
        Ok(Reply::Domain(Box::new(self.full_domain_view(domain))))
    }

    /// Has a domain checked at once.
    fn check_domain(&mut self, name: &str) -> Result<Reply, ApiError> {
        let domain = self.find_domain(name)?.name.clone();
        self.pass_time();
        self.fact(Event::Recheck(domain));
        self.show_domain(name)
    }

    /// A domain by its name or alias.
    pub(super) fn find_domain(&self, name: &str) -> Result<&Domain, ApiError> {
        self.engine.domains().get(name).ok_or_else(|| {
            let known = self.engine.domains().iter();
            let meant = nearest(name, known.map(|domain| domain.name.as_str()));
            ApiError::NoSuchDomain {
                meant: meant.map(str::to_owned),
                name: name.to_owned(),
            }
        })
    }

    async fn set_policy(
        &mut self,
        authority: &Authority,
        set: SetPolicy,
    ) -> Result<Reply, ApiError> {
        let name = name("name", &set.name)?;
        self.may_name(authority, &name)?;
        let save = set.save.unwrap_or(false);
        if save {
            authority.administrator("save a policy in a file")?;
        }
        if self.is_from_file(&name) && !save {
            return Err(ApiError::InvalidArgument {
                field: "name".to_owned(),
                reason: format!(
                    "policy `{name}` is written in {}: change it there, or choose another name",
                    self.place_of(&name)
                ),
            });
        }
        let mut policy = self.policy(authority, name.clone(), &set)?;
        let before = self.engine.state().api_policies.get(&name).cloned();
        let put_back = before.clone().map(Event::PutBack);
        let undo_set = || before.map_or(Event::UnsetPolicy(name.clone()), Event::PutBack);
        let mut placed = None;
        let undo = if let (Some(pid), Some(_)) = (set.pid, authority.owner()) {
            placed = self.place_for(authority.clone(), pid, policy)?;
            Undo {
                drop_in: None,
                policy: Some(undo_set()),
            }
        } else if save {
            policy.origin = policy::Origin::Admin;
            self.save_policy(&policy)?
        } else {
            self.event(Event::SetPolicy(policy))
                .map_err(|e| self.refused_set(&e, set.pid))?;
            Undo {
                drop_in: None,
                policy: Some(undo_set()),
            }
        };
        self.sessions.forget(&name);
        let in_force = self.converge_for(&name, undo).await;
        if let Some(placed) = placed {
            if let Err(error) = self.settle_in(&placed, in_force.is_ok()) {
                // The new policy has ended with its place, and the older one holds again where it did.
                put_back.into_iter().for_each(|event| self.fact(event));
                self.converge_and_log(Look::Nothing).await;
                return Err(error);
            }
            self.sessions.note_moved(placed.pid(), placed.cgroup());
        }
        in_force?;
        match authority.owner() {
            None => info!(policy = %name, save, "set"),
            Some(uid) => debug!(policy = %name, uid, "set"),
        }
        match self.find_policy(name.as_str()) {
            Some(policy) => Ok(Reply::Policy(Box::new(self.full_policy_view(policy)))),
            // The process ended at once, and its policy with it.
            None => Err(self.no_policy(authority, name.to_string())),
        }
    }

    /// The policy that a caller asks for.
    fn policy(
        &mut self,
        authority: &Authority,
        name: Name,
        set: &SetPolicy,
    ) -> Result<Policy, ApiError> {
        let mut matches = Vec::new();
        let plain = authority.owner().is_some();
        let mut others = Vec::new();
        for path in &set.cgroup {
            let pattern = CgroupPattern::new(path).map_err(|e| invalid("cgroup", &e))?;
            self.check_managed(&pattern)?;
            match self.own_cgroup(authority, &pattern)? {
                Some(own) => matches.push(own),
                None => {
                    others.push(pattern.as_str().to_owned());
                    matches.push(Match::Cgroup(pattern));
                }
            }
        }
        if !set.unit.is_empty() {
            authority.administrator("give a unit a policy by its name")?;
        }
        for unit in &set.unit {
            let unit = UnitName::new(unit).map_err(|e| invalid("unit", &e))?;
            matches.push(Match::Unit(unit));
        }
        match set.pid {
            Some(_) if plain && !matches.is_empty() => {
                return Err(ApiError::InvalidArgument {
                    field: "pid".to_owned(),
                    reason: "give either a process or cgroups".to_owned(),
                });
            }
            // It gets a place of its own.
            Some(_) if plain => {}
            Some(pid) => matches.push(self.cgroup_of_process(pid)?),
            None => {}
        }
        let strict = set.strict.unwrap_or(false);
        // Without a domain, `otherwise` says all.
        let use_ = if set.use_.is_empty() && set.otherwise.is_some() {
            Vec::new()
        } else {
            names("use", &set.use_)?
        };
        if plain {
            self.permit(authority, &use_, strict, None)?;
            for path in &others {
                self.permit(authority, &use_, strict, Some(path))?;
            }
        }
        let mut policy = Policy::new(name, policy::Origin::User, matches, use_, strict);
        policy.owner = authority.owner();
        if let Some(otherwise) = set.otherwise {
            policy.otherwise = match otherwise {
                Otherwise::Block => policy::Otherwise::Block,
                Otherwise::Pass => policy::Otherwise::Pass,
                Otherwise::Next => policy::Otherwise::Next,
            };
        }
        if let Some(local) = set.local_networks {
            policy.local_networks = match local {
                LocalNetworks::Pass => policy::LocalNetworks::Pass,
                LocalNetworks::Steer => policy::LocalNetworks::Steer,
            };
        }
        policy.priority =
            i32::try_from(set.priority.unwrap_or(0)).map_err(|_| ApiError::InvalidArgument {
                field: "priority".to_owned(),
                reason: "it has at most 32 bits".to_owned(),
            })?;
        Ok(policy)
    }

    /// The cgroup that a plain user names, if it is its own: the one that is there now, looked at by its
    /// descriptor, and whatever is made at its place later is not it.
    fn own_cgroup(
        &mut self,
        authority: &Authority,
        pattern: &CgroupPattern,
    ) -> Result<Option<Match>, ApiError> {
        let Some(uid) = authority.owner() else {
            return Ok(None);
        };
        let Some(path) = pattern.exact() else {
            authority.administrator("give a policy to cgroups by a pattern")?;
            return Ok(None);
        };
        let Ok(cgroup) = Handle::open(&self.tree, path) else {
            return Ok(None);
        };
        if cgroup.owner().map_err(|e| invalid("cgroup", &e))? != uid {
            return Ok(None);
        }
        let id = cgroup.id().map_err(|e| invalid("cgroup", &e))?;
        self.learn(cgroup.path())
            .map_err(|e| invalid("cgroup", &e))?;
        Ok(Some(Match::CgroupId(id)))
    }

    /// A pattern that can match nothing below the managed root is a mistake, not a policy.
    fn check_managed(&self, pattern: &CgroupPattern) -> Result<(), ApiError> {
        let wrong = |reason| ApiError::InvalidArgument {
            field: "cgroup".to_owned(),
            reason,
        };
        let mount = self.tree.directory_of("");
        let below = format!("/{}", pattern.as_str());
        if let Ok(path) = Path::new(&below).strip_prefix(&mount) {
            return Err(wrong(format!(
                "write the path as in /proc/PID/cgroup, without the mount point: `{}`",
                path.display()
            )));
        }
        let root = self.tree.name_of(self.tree.root()).unwrap_or_default();
        let outside = root
            .split('/')
            .filter(|level| !level.is_empty())
            .zip(pattern.as_str().split('/'))
            .take_while(|(_, wanted)| *wanted != "**")
            .any(|(level, wanted)| !glob(wanted, level));
        if !outside {
            return Ok(());
        }
        Err(wrong(format!(
            "`{}` is not below the managed root: write the path as in /proc/PID/cgroup, beginning with \
             `{root}/`",
            pattern.as_str()
        )))
    }

    fn cgroup_of_process(&mut self, pid: u32) -> Result<Match, ApiError> {
        let pid = i32::try_from(pid).map_err(|e| invalid("pid", &e))?;
        let directory = self.tree.of_process(pid).map_err(|e| invalid("pid", &e))?;
        if directory == self.tree.root() || !directory.starts_with(self.tree.root()) {
            return Err(ApiError::InvalidArgument {
                field: "pid".to_owned(),
                reason: format!(
                    "process {pid} has no cgroup of its own below {}: start it with `steer run`, or \
                     as a unit",
                    self.tree.root().display()
                ),
            });
        }
        let id = id_of(&directory).map_err(|e| invalid("pid", &e))?;
        self.learn(&directory).map_err(|e| invalid("pid", &e))?;
        Ok(Match::CgroupId(id))
    }

    async fn unset_policy(
        &mut self,
        authority: &Authority,
        unset: UnsetPolicy,
    ) -> Result<Reply, ApiError> {
        let own = self.find_policy(&unset.name);
        let Some(policy) = own.filter(|policy| authority.owns(policy)) else {
            return Err(self.no_policy(authority, unset.name));
        };
        let name = policy.name.clone();
        let preferred = self.engine.state().preferred.get(&name).cloned();
        let undo = if self.is_from_file(&name) {
            self.unsave_policy(&name, unset.save.unwrap_or(false))?
        } else {
            let before = policy.clone();
            self.event(Event::UnsetPolicy(name.clone()))
                .map_err(|e| refused(&e))?;
            Undo {
                drop_in: None,
                policy: Some(Event::PutBack(before)),
            }
        };
        if let Err(error) = self.converge_for(&name, undo).await {
            // It went with its policy; if that is not back, it is not either.
            drop(self.event(Event::Prefer {
                policy: name,
                domain: preferred,
            }));
            return Err(error);
        }
        // A plain user cannot fill the log.
        match authority.owner() {
            None => info!(policy = %name, "unset"),
            Some(uid) => debug!(policy = %name, uid, "unset"),
        }
        // What became of its flows is told when they were looked at.
        Ok(Reply::Unset(UnsetReply { sessions: None }))
    }

    /// Brings what a call asked for into force. What cannot be kept is not done either, since the next
    /// agent would not know of it: `undo` takes it back.
    async fn converge_for(&mut self, name: &Name, undo: Undo) -> Result<(), ApiError> {
        // Those that it had until now: what it is removed from may be refused, too.
        let mut numbers = self.engine.numbers(name);
        if let Err(error) = self.converge(Look::Nothing).await {
            let mut reason = chain(&error);
            if let Err(error) = self.undo(undo) {
                reason.push_str(&format!("; and it could not be undone: {error}"));
            }
            self.converge_and_log(Look::Nothing).await;
            return Err(ApiError::Failed { reason });
        }
        numbers.extend(self.engine.numbers(name));
        match self.refused_of(name, &numbers) {
            None => Ok(()),
            Some(words) => Err(ApiError::Failed {
                reason: format!("{words}; it is tried again"),
            }),
        }
    }

    /// Takes back as much as can be, and says what could not.
    fn undo(&mut self, undo: Undo) -> Result<(), ApiError> {
        let files = undo.drop_in.map_or(Ok(()), |drop_in| {
            drop_in.put_back()?;
            self.load_again()?;
            Ok(())
        });
        if let Some(policy) = undo.policy {
            self.fact(policy);
        }
        files
    }

    /// The file and line where a policy begins, as far as they can be told from a look at the text.
    fn place_of(&self, name: &Name) -> String {
        files::read(self.config.as_deref())
            .ok()
            .and_then(|texts| files::place_of_section(&texts, &format!("policy.{name}")))
            .unwrap_or_else(|| "a file".to_owned())
    }

    /// Where `save` writes a policy: a drop-in of its own.
    fn drop_in(&self, name: &Name) -> PathBuf {
        files::drop_in_directory(&self.main_file()).join(format!("50-{name}.toml"))
    }

    /// Writes a policy to its drop-in and reads the files again. If they are wrong then, the drop-in
    /// is as it was.
    fn save_policy(&mut self, policy: &Policy) -> Result<Undo, ApiError> {
        policy.check().map_err(|e| refused(&e.into()))?;
        let drop_in = DropIn::read(self.drop_in(&policy.name))?;
        let text = policy_to_toml(policy).map_err(|e| invalid("save", &e))?;
        // The files take the place of a policy of that name that was set by command.
        let set = self.engine.state().api_policies.get(&policy.name);
        let set = set.cloned().map(Event::PutBack);
        drop_in.replace(text.as_bytes())?;
        self.load_or_put_back(&policy.name, drop_in, set)
    }

    fn unsave_policy(&mut self, name: &Name, save: bool) -> Result<Undo, ApiError> {
        let path = self.drop_in(name);
        if !save || !path.exists() {
            return Err(ApiError::InvalidArgument {
                field: "name".to_owned(),
                reason: if path.exists() {
                    format!(
                        "policy `{name}` is saved in {}: use --save to remove it there",
                        path.display()
                    )
                } else {
                    format!(
                        "policy `{name}` is written in {}: remove it there",
                        self.place_of(name)
                    )
                },
            });
        }
        let drop_in = DropIn::read(path)?;
        drop_in.remove()?;
        self.load_or_put_back(name, drop_in, None)
    }

    fn load_or_put_back(
        &mut self,
        name: &Name,
        drop_in: DropIn,
        policy: Option<Event>,
    ) -> Result<Undo, ApiError> {
        let wrong = match self.load_again().map_err(ApiError::from) {
            Ok(_) => {
                let quarantined = &self.engine.state().config.quarantined;
                quarantined.get(name).map(|bad| {
                    let mistakes: Vec<String> =
                        bad.mistakes.iter().map(ToString::to_string).collect();
                    ApiError::InvalidArgument {
                        field: "save".to_owned(),
                        reason: format!("the file would be wrong: {}", mistakes.join("; ")),
                    }
                })
            }
            Err(wrong) => Some(wrong),
        };
        let undo = Undo {
            drop_in: Some(drop_in),
            policy,
        };
        match wrong {
            None => Ok(undo),
            Some(wrong) => {
                self.undo(undo)?;
                Err(wrong)
            }
        }
    }
}

/// What a call changed, as it was before.
struct Undo {
    /// The drop-in that it wrote or removed.
    drop_in: Option<DropIn>,
    /// What gives the policy back that was set by command.
    policy: Option<Event>,
}

pub(super) fn name(field: &str, text: &str) -> Result<Name, ApiError> {
    Name::new(text).map_err(|e| invalid(field, &e))
}

pub(super) fn names(field: &str, texts: &[String]) -> Result<Vec<Name>, ApiError> {
    if texts.is_empty() {
        return Err(ApiError::InvalidArgument {
            field: field.to_owned(),
            reason: "name at least one domain or group (`steer domain list`)".to_owned(),
        });
    }
    texts.iter().map(|text| name(field, text)).collect()
}

impl Daemon {
    /// [`refused`], for a process that a command steers already.
    fn refused_set(&self, rejected: &Rejected, pid: Option<u32>) -> ApiError {
        match (rejected, pid) {
            (Rejected::Conflict { other, .. }, Some(pid)) if is_run(other) => invalid_text(
                "pid",
                format!(
                    "the policy `{other}` of `steer run` or `steer move` holds for process {pid}: use `steer \
                     move {pid} --via ..`, or unset it first"
                ),
            ),
            _ => refused(rejected),
        }
    }
}

/// What the engine rejected, with the parameter that it is about.
pub(super) fn refused(rejected: &Rejected) -> ApiError {
    let field = match rejected {
        // The policy is what the caller speaks of.
        Rejected::UnknownDomain { name, meant, .. } => {
            let meant = meant.as_ref();
            let meant = meant.map_or_else(String::new, |m| format!("; did you mean `{m}`?"));
            return ApiError::InvalidArgument {
                field: "use".to_owned(),
                reason: format!("unknown domain `{name}`{meant}"),
            };
        }
        Rejected::NotUsed { .. } => "domain",
        Rejected::Conflict { .. } => "priority",
        Rejected::ShutOut { .. } => "cgroup",
        Rejected::Policy(PolicyError::StrictOtherwise(_)) => "otherwise",
        Rejected::Policy(PolicyError::TooManyUses { .. }) => "use",
        _ => "name",
    };
    invalid(field, rejected)
}

impl From<files::Error> for ApiError {
    fn from(error: files::Error) -> Self {
        Self::Failed {
            reason: chain(&error),
        }
    }
}

fn invalid_text(field: &str, reason: String) -> ApiError {
    ApiError::InvalidArgument {
        field: field.to_owned(),
        reason,
    }
}

fn invalid(field: &str, error: &dyn std::error::Error) -> ApiError {
    ApiError::InvalidArgument {
        field: field.to_owned(),
        reason: chain(error),
    }
}
