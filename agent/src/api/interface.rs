//! The description of the interface, made from the types; it is also what calls are checked
//! against, so that a wrong parameter is named.

use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;
use zlink::idl::{self, Comment, Interface, Type};
use zlink::introspect::{CustomType, ReplyError};
use zlink::varlink_service;

use super::error::ApiError;
use super::explain::{
    AddressFamily, ContenderView, Explain, ExplanationView, FamilyPathView, FlowOutcome, FlowView,
    KernelView, MapEntriesView, RuleView, Standing, SubjectView, WithoutView,
};
use super::flows::{FlowOrder, HolderView, ListFlows, LiveFlowView, Whereabouts};
use super::methods::{
    CheckDomain, ListDomains, ListPolicies, Method, Move, Prefer, Reload, Request, Resolve, Run,
    SetPolicy, ShowDomain, ShowPolicy, Status, UnsetPolicy, Watch,
};
use super::mistake::Mistake;
use super::types::{
    Candidate, ChangeView, Choice, DecisionView, DomainView, HostModelView, LocalNetworks,
    MeasuredView, NetworkView, Origin, Otherwise, PolicyView, SessionsView, StatusView,
    TrafficView, Verdict,
};
use super::{INTERFACE, description};

/// Types with a name of their own.
const CUSTOM_TYPES: &[&idl::CustomType<'static>] = &[
    AddressFamily::CUSTOM_TYPE,
    Candidate::CUSTOM_TYPE,
    ChangeView::CUSTOM_TYPE,
    Choice::CUSTOM_TYPE,
    ContenderView::CUSTOM_TYPE,
    DecisionView::CUSTOM_TYPE,
    DomainView::CUSTOM_TYPE,
    HostModelView::CUSTOM_TYPE,
    ExplanationView::CUSTOM_TYPE,
    FamilyPathView::CUSTOM_TYPE,
    FlowOrder::CUSTOM_TYPE,
    FlowOutcome::CUSTOM_TYPE,
    FlowView::CUSTOM_TYPE,
    HolderView::CUSTOM_TYPE,
    KernelView::CUSTOM_TYPE,
    LiveFlowView::CUSTOM_TYPE,
    LocalNetworks::CUSTOM_TYPE,
    MeasuredView::CUSTOM_TYPE,
    Mistake::CUSTOM_TYPE,
    NetworkView::CUSTOM_TYPE,
    MapEntriesView::CUSTOM_TYPE,
    Origin::CUSTOM_TYPE,
    Otherwise::CUSTOM_TYPE,
    PolicyView::CUSTOM_TYPE,
    RuleView::CUSTOM_TYPE,
    SessionsView::CUSTOM_TYPE,
    Standing::CUSTOM_TYPE,
    StatusView::CUSTOM_TYPE,
    SubjectView::CUSTOM_TYPE,
    TrafficView::CUSTOM_TYPE,
    Verdict::CUSTOM_TYPE,
    Whereabouts::CUSTOM_TYPE,
    WithoutView::CUSTOM_TYPE,
];

/// What the interface is for, one comment a line.
const ABOUT: &[&str] = &[
    "Per-application network steering: policies say which domains an",
    "application's flows leave by; domains are the ways out of the host.",
    "",
    "A request has at most 64 KiB. Parameters that are not listed are refused.",
];

/// A call that cannot be handed to the agent.
#[derive(Debug, PartialEq)]
pub enum CallError {
    /// An error of `org.varlink.service`.
    Service(varlink_service::Error<'static>),
    /// An error of this interface.
    Api(ApiError),
}

/// A call that the server understood.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    /// `org.varlink.service.GetInfo`
    Info,
    /// `org.varlink.service.GetInterfaceDescription`
    Description(&'static str),
    /// A method of this interface.
    Request(Request),
}

/// A call as it stands on the wire.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    /// Full name of the method.
    pub(super) method: String,
    /// Its parameters.
    #[serde(default)]
    pub(super) parameters: Option<Value>,
    /// Whether no answer is wanted.
    #[serde(default)]
    pub(super) oneway: bool,
    /// Whether parts of the answer are wanted before its end.
    #[serde(default)]
    pub(super) more: bool,
}

/// The description of `net.steer.Agent`, in Varlink's definition language.
pub fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| match build() {
        Ok(interface) => description::render(&interface),
        // The names are constants, all of them valid: a test builds the description.
        Err(e) => format!("# {e}\ninterface {INTERFACE}\n"),
    })
}

fn service_description() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| description::render(varlink_service::DESCRIPTION))
}

fn build() -> Result<Interface<'static>, zlink::names::Error> {
    let methods = vec![
        method::<CheckDomain>()?,
        method::<Resolve>()?,
        method::<Explain>()?,
        method::<ListDomains>()?,
        method::<ListFlows>()?,
        method::<ListPolicies>()?,
        method::<Move>()?,
        method::<Prefer>()?,
        method::<Reload>()?,
        method::<Run>()?,
        method::<SetPolicy>()?,
        method::<ShowDomain>()?,
        method::<ShowPolicy>()?,
        method::<Status>()?,
        method::<UnsetPolicy>()?,
        method::<Watch>()?,
    ];
    Interface::new_owned(
        INTERFACE,
        methods,
        CUSTOM_TYPES.iter().map(|&t| t.clone()).collect(),
        ApiError::VARIANTS.iter().map(|&e| e.clone()).collect(),
        ABOUT.iter().map(|&line| Comment::new(line)).collect(),
    )
}

fn method<M: Method>() -> Result<idl::Method<'static>, zlink::names::Error> {
    idl::Method::new_owned(
        M::NAME,
        fields(M::TYPE).cloned().collect(),
        fields(<M::Reply as zlink::introspect::Type>::TYPE)
            .cloned()
            .collect(),
        vec![Comment::new(M::ABOUT)],
    )
}

fn fields(ty: &'static Type<'static>) -> impl Iterator<Item = &'static idl::Field<'static>> {
    let list = match ty {
        Type::Object(list) => Some(list),
        _ => None,
    };
    list.into_iter().flat_map(|list| list.iter())
}

/// Reads a call.
///
/// # Errors
/// The method is unknown, or a parameter is missing, unknown or of another type.
pub(super) fn read(message: Message) -> Result<Incoming, CallError> {
    let Message {
        method, parameters, ..
    } = message;
    let unknown_method = || {
        CallError::Service(varlink_service::Error::MethodNotFound {
            method: method.clone().into(),
        })
    };
    let (interface, name) = method.rsplit_once('.').ok_or_else(unknown_method)?;
    match (interface, name) {
        ("org.varlink.service", "GetInfo") => Ok(Incoming::Info),
        ("org.varlink.service", "GetInterfaceDescription") => {
            let wanted = parameters.as_ref().and_then(|p| p.get("interface"));
            match wanted.and_then(Value::as_str) {
                Some(INTERFACE) => Ok(Incoming::Description(text())),
                Some("org.varlink.service") => Ok(Incoming::Description(service_description())),
                Some(other) => Err(CallError::Service(
                    varlink_service::Error::InterfaceNotFound {
                        interface: other.to_owned().into(),
                    },
                )),
                None => Err(invalid("interface")),
            }
        }
        (INTERFACE, SetPolicy::NAME) => {
            Ok(Incoming::Request(Request::SetPolicy(parse(parameters)?)))
        }
        (INTERFACE, UnsetPolicy::NAME) => {
            Ok(Incoming::Request(Request::UnsetPolicy(parse(parameters)?)))
        }
        (INTERFACE, ListPolicies::NAME) => {
            parse::<ListPolicies>(parameters)?;
            Ok(Incoming::Request(Request::ListPolicies))
        }
        (INTERFACE, ShowPolicy::NAME) => {
            Ok(Incoming::Request(Request::ShowPolicy(parse(parameters)?)))
        }
        (INTERFACE, ListDomains::NAME) => {
            parse::<ListDomains>(parameters)?;
            Ok(Incoming::Request(Request::ListDomains))
        }
        (INTERFACE, ShowDomain::NAME) => {
            Ok(Incoming::Request(Request::ShowDomain(parse(parameters)?)))
        }
        (INTERFACE, Status::NAME) => {
            parse::<Status>(parameters)?;
            Ok(Incoming::Request(Request::Status))
        }
        (INTERFACE, Reload::NAME) => {
            parse::<Reload>(parameters)?;
            Ok(Incoming::Request(Request::Reload))
        }
        (INTERFACE, Explain::NAME) => Ok(Incoming::Request(Request::Explain(parse(parameters)?))),
        (INTERFACE, ListFlows::NAME) => {
            Ok(Incoming::Request(Request::ListFlows(parse(parameters)?)))
        }
        (INTERFACE, Move::NAME) => Ok(Incoming::Request(Request::Move(parse(parameters)?))),
        (INTERFACE, Prefer::NAME) => Ok(Incoming::Request(Request::Prefer(parse(parameters)?))),
        (INTERFACE, Watch::NAME) => {
            parse::<Watch>(parameters)?;
            Ok(Incoming::Request(Request::Watch))
        }
        (INTERFACE, CheckDomain::NAME) => {
            Ok(Incoming::Request(Request::CheckDomain(parse(parameters)?)))
        }
        (INTERFACE, Resolve::NAME) => Ok(Incoming::Request(Request::Resolve(parse(parameters)?))),
        (INTERFACE, Run::NAME) => Ok(Incoming::Request(Request::Run(parse(parameters)?))),
        (INTERFACE | "org.varlink.service", _) => Err(unknown_method()),
        (other, _) => Err(CallError::Service(
            varlink_service::Error::InterfaceNotFound {
                interface: other.to_owned().into(),
            },
        )),
    }
}

fn invalid(parameter: &str) -> CallError {
    CallError::Service(varlink_service::Error::InvalidParameter {
        parameter: parameter.to_owned().into(),
    })
}

fn parse<M: Method>(parameters: Option<Value>) -> Result<M, CallError> {
    let parameters = match parameters {
        None | Some(Value::Null) => serde_json::Map::new(),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(invalid("parameters")),
    };
    // A parameter that is not known would be a wish ignored in silence ("stirct").
    if let Some(unknown) = parameters
        .keys()
        .find(|&key| fields(M::TYPE).all(|field| field.name() != key.as_str()))
    {
        return Err(invalid(unknown));
    }
    for field in fields(M::TYPE) {
        let value = parameters
            .get(field.name().as_str())
            .unwrap_or(&Value::Null);
        if !fits(value, field.ty()) {
            return Err(invalid(field.name().as_str()));
        }
    }
    // What is left are numbers out of range, which serde's words describe.
    M::deserialize(&Value::Object(parameters.clone())).map_err(|e| {
        CallError::Api(ApiError::InvalidArgument {
            field: out_of_range::<M>(parameters).unwrap_or_else(|| "parameters".to_owned()),
            reason: e.to_string(),
        })
    })
}

/// The number that serde refuses, which its error does not tell: without it the rest is taken.
fn out_of_range<M: Method>(mut parameters: serde_json::Map<String, Value>) -> Option<String> {
    let numbers: Vec<String> = parameters
        .iter()
        .filter(|(_, value)| value.is_number())
        .map(|(name, _)| name.clone())
        .collect();
    numbers.into_iter().find(|name| {
        parameters.remove(name);
        M::deserialize(&Value::Object(parameters.clone())).is_ok()
    })
}

/// Whether a value is of a type of the definition language.
fn fits(value: &Value, ty: &Type<'_>) -> bool {
    match ty {
        Type::Bool => value.is_boolean(),
        Type::Int => value.is_i64(),
        Type::Float => value.is_number(),
        Type::String => value.is_string(),
        Type::ForeignObject => value.is_object(),
        Type::Any => true,
        Type::Optional(inner) => value.is_null() || fits(value, inner.inner()),
        Type::Array(inner) => value
            .as_array()
            .is_some_and(|items| items.iter().all(|i| fits(i, inner.inner()))),
        Type::Map(inner) => value
            .as_object()
            .is_some_and(|map| map.values().all(|i| fits(i, inner.inner()))),
        Type::Enum(variants) => value
            .as_str()
            .is_some_and(|text| variants.iter().any(|v| v.name() == text)),
        Type::Object(list) => value.as_object().is_some_and(|map| {
            list.iter()
                .all(|f| fits(map.get(f.name().as_str()).unwrap_or(&Value::Null), f.ty()))
        }),
        Type::Custom(name) => CUSTOM_TYPES.iter().any(|custom| match custom {
            idl::CustomType::Enum(custom) if custom.name() == name => value
                .as_str()
                .is_some_and(|text| custom.variants().any(|v| v.name() == text)),
            idl::CustomType::Object(custom) if custom.name() == name => value.is_object(),
            _ => false,
        }),
    }
}
