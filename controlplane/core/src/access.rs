//! Who may do what, and for whom (F-115, NF-012).

use std::{collections::BTreeSet, fmt};

use rspp_proto::{Actor, TenantId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What somebody is trusted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Looks; routes, moves and ends sessions; drains runtimes.
    Operator,
    /// Everything that people do: publishes, rolls out, approves, sets limits, rotates keys, restores.
    Admin,
    /// A runtime: registers itself, holds leases, writes the state of sessions that it holds.
    Runtime,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Admin, Self::Runtime];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Runtime => "runtime",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose business an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A tenant's, which the call names.
    Tenant,
    /// Everybody's: only who acts for all tenants may.
    Fleet,
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $scope:ident, [$($role:ident),+];)*) => {
        /// Everything that can be asked of a control plane.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Operation {
            $($(#[$doc])* $name,)*
        }

        impl Operation {
            /// All operations.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in the audit trail.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whose business it is.
            pub fn scope(self) -> Scope {
                match self { $(Self::$name => Scope::$scope,)* }
            }

            /// Who may.
            pub fn roles(self) -> &'static [Role] {
                match self { $(Self::$name => &[$(Role::$role),+],)* }
            }
        }
    };
}

operations! {
    /// Lists and reads published versions.
    ReadArtifacts = "read_artifacts", Fleet, [Viewer, Operator, Admin, Runtime];
    /// Publishes a version.
    Publish = "publish", Fleet, [Admin];
    /// Reads rollouts and proposals.
    ReadRollouts = "read_rollouts", Fleet, [Viewer, Operator, Admin, Runtime];
    /// Changes a rollout, or proposes to.
    ChangeRollout = "change_rollout", Fleet, [Admin];
    /// Pauses a rollout or goes back: what makes things safer needs less.
    RollBack = "roll_back", Fleet, [Operator, Admin];
    /// Approves somebody else's change.
    Approve = "approve", Fleet, [Admin];
    /// Reports measurements of versions, which may end their rollouts.
    ReportGate = "report_gate", Fleet, [Runtime];
    /// Asks whether a tenant may open a session, or what it uses.
    Admit = "admit", Tenant, [Operator, Admin, Runtime];
    /// Reads and sets limits, residency and what needs approval.
    Govern = "govern", Fleet, [Admin];
    /// Asks where a session runs or is to run, and for a token for it.
    RouteSession = "route_session", Tenant, [Operator, Admin, Runtime];
    /// Reads how a tenant's sessions go.
    ReadSessions = "read_sessions", Tenant, [Viewer, Operator, Admin, Runtime];
    /// Moves or ends a tenant's session.
    MoveSession = "move_session", Tenant, [Operator, Admin];
    /// Acquires, renews and releases leases.
    HoldLeases = "hold_leases", Fleet, [Runtime];
    /// Reads and writes what a held session keeps; says how it goes.
    WriteState = "write_state", Fleet, [Runtime];
    /// Registers itself and says how busy it is.
    JoinFleet = "join_fleet", Fleet, [Runtime];
    /// Lists runtimes and regions.
    ReadFleet = "read_fleet", Fleet, [Viewer, Operator, Admin, Runtime];
    /// Drains runtimes and leaves regions.
    OperateFleet = "operate_fleet", Fleet, [Operator, Admin];
    /// Reads, verifies and exports the audit trail.
    ReadAudit = "read_audit", Fleet, [Admin];
    /// Rotates the keys that tokens are signed with.
    RotateKeys = "rotate_keys", Fleet, [Admin];
    /// Copies or replaces everything that is stored.
    Backup = "backup", Fleet, [Admin];
}

/// For whom somebody acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tenants {
    /// For everybody.
    All,
    /// For these only.
    Only(BTreeSet<TenantId>),
}

impl Tenants {
    /// Whether they act for this one.
    pub fn include(&self, tenant: &TenantId) -> bool {
        match self {
            Self::All => true,
            Self::Only(tenants) => tenants.contains(tenant),
        }
    }
}

/// Somebody whose credentials were checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Who.
    pub actor: Actor,
    /// What they are trusted with.
    pub role: Role,
    /// For whom they act.
    pub tenants: Tenants,
}

/// A call that was not allowed. Goes into the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denied {
    /// The role does not do that.
    #[error("{actor} is {role}, and {operation} needs {}", list(needed))]
    Role {
        /// Who.
        actor: Actor,
        /// What they are.
        role: Role,
        /// What they asked for.
        operation: &'static str,
        /// Who may.
        needed: &'static [Role],
    },
    /// Not for that tenant. Does not say whether it exists.
    #[error("{actor} does not act for that tenant")]
    Tenant {
        /// Who.
        actor: Actor,
    },
    /// It concerns everybody, and they act for some.
    #[error("{actor} acts for some tenants only, and {operation} concerns all")]
    Fleet {
        /// Who.
        actor: Actor,
        /// What they asked for.
        operation: &'static str,
    },
}

fn list(roles: &[Role]) -> String {
    let names: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
    names.join(" or ")
}

impl Denied {
    /// A stable word for records and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Role { .. } => "role_denied",
            Self::Tenant { .. } => "tenant_denied",
            Self::Fleet { .. } => "fleet_denied",
        }
    }
}

impl Principal {
    /// Whether they may do that for `tenant`; operations of the fleet name none.
    ///
    /// Reading what concerns everybody is allowed to those who act for some: which versions and
    /// runtimes there are is no tenant's secret.
    pub fn may(&self, operation: Operation, tenant: Option<&TenantId>) -> Result<(), Denied> {
        if !operation.roles().contains(&self.role) {
            return Err(Denied::Role {
                actor: self.actor.clone(),
                role: self.role,
                operation: operation.as_str(),
                needed: operation.roles(),
            });
        }
        match (operation.scope(), tenant) {
            (Scope::Tenant, Some(tenant)) if self.tenants.include(tenant) => Ok(()),
            (Scope::Tenant, Some(_)) => Err(Denied::Tenant {
                actor: self.actor.clone(),
            }),
            // Whoever names no tenant asks about all of them.
            (Scope::Tenant | Scope::Fleet, None) | (Scope::Fleet, Some(_)) => {
                let only_reads = operation.roles().contains(&Role::Viewer);
                let reads_fleet = only_reads && operation.scope() == Scope::Fleet;
                if self.tenants == Tenants::All || reads_fleet {
                    Ok(())
                } else {
                    Err(Denied::Fleet {
                        actor: self.actor.clone(),
                        operation: operation.as_str(),
                    })
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn principal(role: Role, tenants: Tenants) -> Principal {
        Principal {
            actor: Actor::new("ana").unwrap(),
            role,
            tenants,
        }
    }

    /// F-115, NF-012: every operation in every role, as a table of who may what.
    #[test]
    fn each_role_may_exactly_what_it_is_for() {
        let expected = "\
read_artifacts   VOAR
publish          --A-
read_rollouts    VOAR
change_rollout   --A-
roll_back        -OA-
approve          --A-
report_gate      ---R
admit            -OAR
govern           --A-
route_session    -OAR
read_sessions    VOAR
move_session     -OA-
hold_leases      ---R
write_state      ---R
join_fleet       ---R
read_fleet       VOAR
operate_fleet    -OA-
read_audit       --A-
rotate_keys      --A-
backup           --A-
";
        let tenant = TenantId::new("acme").unwrap();
        let mut table = String::new();
        for operation in Operation::ALL {
            let marks = Role::ALL.map(|role| {
                let may = principal(role, Tenants::All).may(*operation, Some(&tenant));
                let initial = role.as_str().to_uppercase().remove(0);
                if may.is_ok() { initial } else { '-' }
            });
            let marks = String::from_iter(marks);
            writeln!(table, "{:<16} {marks}", operation.as_str()).unwrap();
        }
        assert_eq!(table, expected);
    }

    /// F-114: who acts for some tenants sees and touches nothing of others.
    #[test]
    fn a_tenants_people_stay_with_their_tenant() {
        let tenant = |name| TenantId::new(name).unwrap();
        let only = Tenants::Only(BTreeSet::from([tenant("acme")]));
        for role in Role::ALL {
            let principal = principal(role, only.clone());
            for operation in Operation::ALL {
                let allowed = operation.roles().contains(&role);
                let tenants_own = operation.scope() == Scope::Tenant;
                let reads = operation.roles().contains(&Role::Viewer);
                let own = principal.may(*operation, Some(&tenant("acme")));
                let other = principal.may(*operation, Some(&tenant("other")));
                let all = principal.may(*operation, None);
                assert_eq!(
                    own.is_ok(),
                    allowed && (tenants_own || reads),
                    "{operation:?}"
                );
                assert_eq!(other.is_ok(), allowed && !tenants_own && reads);
                assert_eq!(all.is_ok(), allowed && !tenants_own && reads);
            }
        }
    }

    #[test]
    fn a_denial_says_what_would_be_needed_and_no_secret() {
        let denied = principal(Role::Viewer, Tenants::All).may(Operation::RollBack, None);
        assert_eq!(
            denied.unwrap_err().to_string(),
            "ana is viewer, and roll_back needs operator or admin"
        );
    }
}
