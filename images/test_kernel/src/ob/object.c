/* Object manager: reference counts and handles. Handles are multiples of four, as in Windows;
 * callers are all in kernel mode, whose access rights Windows does not check either. */
#include "ob.h"

static PVOID ObpHandles[512];
static KSPIN_LOCK ObpLock;

static POBJECT_HEADER ObpHeader(PVOID Body) { return CONTAINING_RECORD(Body, OBJECT_HEADER, Body); }

NTSTATUS ObCreateObject(POBJECT_TYPE Type, SIZE_T Bytes, PVOID *Body) {
    POBJECT_HEADER Header = ExAllocatePool2(0x40, sizeof(OBJECT_HEADER) + Bytes, 'jbO ');
    if (!Header) return STATUS_INSUFFICIENT_RESOURCES;
    Header->PointerCount = 1;
    Header->Type = Type;
    *Body = Header->Body;
    return STATUS_SUCCESS;
}

LONG_PTR ObfReferenceObject(PVOID Body) {
    return __atomic_add_fetch(&ObpHeader(Body)->PointerCount, 1, __ATOMIC_SEQ_CST);
}

NTSYSAPI LONG_PTR ObfDereferenceObject(PVOID Body) {
    POBJECT_HEADER Header = ObpHeader(Body);
    LONG_PTR Left = __atomic_sub_fetch(&Header->PointerCount, 1, __ATOMIC_SEQ_CST);
    if (Left < 0) /* REFERENCE_BY_POINTER: dereferenced more often than referenced */
        KeBugCheckEx(0x18, (ULONG64)Header->Type, (ULONG64)Body, 2, (ULONG64)Left);
    if (Left == 0) {
        if (Header->Type->Delete) Header->Type->Delete(Body);
        ExFreePoolWithTag(Header, 'jbO ');
    }
    return Left;
}

/* The entry of an open handle, or NULL. The lock is held. */
static PVOID *ObpFindHandle(HANDLE Handle) {
    ULONG64 Index = (ULONG64)Handle / 4 - 1;
    BOOLEAN Open = (ULONG64)Handle % 4 == 0 && Index < ARRAY_SIZE(ObpHandles) && ObpHandles[Index];
    return Open ? &ObpHandles[Index] : NULL;
}

NTSTATUS ObInsertObject(PVOID Body, PHANDLE Handle) {
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&ObpLock);
    for (ULONG i = 0; i < ARRAY_SIZE(ObpHandles); i++)
        if (!ObpHandles[i]) {
            ObpHandles[i] = Body;
            ObpHeader(Body)->HandleCount++;
            *Handle = (HANDLE)((i + 1) * 4ULL);
            KeReleaseSpinLock(&ObpLock, Irql);
            return STATUS_SUCCESS;
        }
    KeReleaseSpinLock(&ObpLock, Irql);
    ObfDereferenceObject(Body);
    return STATUS_INSUFFICIENT_RESOURCES;
}

/* `Type` is a POBJECT_TYPE such as IoFileObjectType, or NULL for any. */
NTSYSAPI NTSTATUS ObReferenceObjectByHandle(
    HANDLE Handle, ULONG Access, PVOID Type, CHAR Mode, PVOID *Object, PVOID Information) {
    UNREFERENCED(Access), UNREFERENCED(Mode), UNREFERENCED(Information);
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&ObpLock);
    PVOID *Entry = ObpFindHandle(Handle), Body = Entry ? *Entry : NULL;
    BOOLEAN Match = Body && (!Type || ObpHeader(Body)->Type == Type);
    if (Match) ObfReferenceObject(Body);
    KeReleaseSpinLock(&ObpLock, Irql);
    *Object = Match ? Body : NULL;
    return Match ? STATUS_SUCCESS : Body ? STATUS_OBJECT_TYPE_MISMATCH : STATUS_INVALID_HANDLE;
}

NTSYSAPI NTSTATUS ZwClose(HANDLE Handle) {
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&ObpLock);
    PVOID *Entry = ObpFindHandle(Handle), Body = Entry ? *Entry : NULL;
    if (Body) {
        *Entry = NULL;
        ObpHeader(Body)->HandleCount--;
    }
    KeReleaseSpinLock(&ObpLock, Irql);
    if (!Body) return STATUS_INVALID_HANDLE;
    ObfDereferenceObject(Body);
    return STATUS_SUCCESS;
}
