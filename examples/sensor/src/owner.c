// TEMPLATE_OWNER: checks the policies of the owners that content names.
//
// Criteria: 1 the owner's number; 2 the policy flags it must have, or a wildcard: none.
// The bug: content that names an owner the table does not have.
#include "sensor.h"

typedef struct _SENSOR_OWNER {
    ULONG OwnerId;
    ULONG SessionId;
    WCHAR Name[64];
    UCHAR Digest[20];
    ULONG PolicyFlags;
} SENSOR_OWNER, *PSENSOR_OWNER;
C_ASSERT(FIELD_OFFSET(SENSOR_OWNER, PolicyFlags) == 0x9c);

static const SENSOR_OWNER Owners[] = {
    {1, 0, L"System", {0}, 0x7},
    {2, 0, L"Services", {0}, 0x3},
    {3, 1, L"Interactive", {0}, 0x1},
};

static DECLSPEC_NOINLINE const SENSOR_OWNER *FindOwner(ULONG64 OwnerId) {
    for (ULONG Index = 0; Index < RTL_NUMBER_OF(Owners); Index++) {
        if (Owners[Index].OwnerId == OwnerId)
            return &Owners[Index];
    }
    return NULL;
}

SENSOR_CHAIN BOOLEAN OwnerHasPolicy(const SENSOR_OWNER *Owner, ULONG64 Flags) {
    return (Owner->PolicyFlags & Flags) == Flags;
}

SENSOR_CHAIN BOOLEAN EvaluateOwnerInstance(const CONTENT_INSTANCE *Instance) {
    const CONTENT_CRITERION *OwnerId = FirstCriterion(Instance);
    const CONTENT_CRITERION *Flags = NextCriterion(OwnerId);
    const SENSOR_OWNER *Owner = FindOwner(CriterionNumber(OwnerId, 1));
    if (OwnerHasPolicy(Owner, CriterionNumber(Flags, 0)))
        return TRUE;
    SensorPrint("instance %u: owner %u lacks a policy\n", Instance->InstanceId, Owner->OwnerId);
    return FALSE;
}

// At PASSIVE_LEVEL, from the worker thread.
DECLSPEC_NOINLINE VOID RunOwnerPolicies(const SENSOR_CONTENT *Content) {
    const CONTENT_INSTANCE *Instance = FirstInstance(Content);
    for (ULONG Index = 0; Index < Content->Header.InstanceCount; Index++) {
        if (!EvaluateOwnerInstance(Instance))
            return;
        const CONTENT_CRITERION *Flags = NextCriterion(FirstCriterion(Instance));
        Instance = (const CONTENT_INSTANCE *)NextCriterion(Flags);
    }
}
