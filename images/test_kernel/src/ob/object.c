/* Object manager: reference counts and handles. Handles are multiples of four, as in Windows;
 * callers are all in kernel mode, whose access rights Windows does not check either. */
#include "ob.h"

static PVOID ObpHandles[512];
static KSPIN_LOCK ObpLock;

static POBJECT_HEADER ObpHeader(PVOID Body) { return CONTAINING_RECORD(Body, OBJECT_HEADER, Body); }
LONG_PTR ObfReferenceObject(PVOID Body) {
    return __atomic_add_fetch(&ObpHeader(Body)->PointerCount, 1, __ATOMIC_SEQ_CST);
}

NTSTATUS ObCreateObject(POBJECT_TYPE Type, SIZE_T Bytes, PVOID *Body) {
    POBJECT_HEADER Header = ExAllocatePool2(0x40, sizeof(OBJECT_HEADER) + Bytes, 'jbO ');
    if (!Header) return STATUS_INSUFFICIENT_RESOURCES;
    *Header = (OBJECT_HEADER){.PointerCount = 1, .Type = Type};
    *Body = Header->Body;
    return STATUS_SUCCESS;
}

NTSYSAPI LONG_PTR ObfDereferenceObject(PVOID Body) {
    POBJECT_HEADER Header = ObpHeader(Body);
    LONG_PTR Left = __atomic_sub_fetch(&Header->PointerCount, 1, __ATOMIC_SEQ_CST);
    if (Left < 0) /* REFERENCE_BY_POINTER: dereferenced more often than referenced */
        KeBugCheckEx(0x18, (ULONG64)Header->Type, (ULONG64)Body, 2, (ULONG64)Left);
    if (Left == 0 && Header->Type->Delete) Header->Type->Delete(Body);
    if (Left == 0) ExFreePoolWithTag(Header, 'jbO ');
    return Left;
}

NTSTATUS ObInsertObject(PVOID Body, PHANDLE Handle) {
    ULONG Slot = 0;
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&ObpLock);
    while (Slot < ARRAY_SIZE(ObpHandles) && ObpHandles[Slot]) Slot++;
    BOOLEAN Room = Slot < ARRAY_SIZE(ObpHandles);
    if (Room) ObpHandles[Slot] = Body;
    KeReleaseSpinLock(&ObpLock, Irql);
    *Handle = (HANDLE)((Slot + 1) * 4ULL);
    if (!Room) ObfDereferenceObject(Body);
    return Room ? STATUS_SUCCESS : STATUS_INSUFFICIENT_RESOURCES;
}

/* `Type` is a POBJECT_TYPE such as IoFileObjectType, or NULL for any. */
NTSYSAPI NTSTATUS ObReferenceObjectByHandle(
    HANDLE Handle, ULONG Access, PVOID Type, CHAR Mode, PVOID *Object, PVOID Information) {
    UNREFERENCED(Access), UNREFERENCED(Mode), UNREFERENCED(Information);
    ULONG64 Slot = (ULONG64)Handle / 4 - 1;
    if ((ULONG64)Handle % 4 || Slot >= ARRAY_SIZE(ObpHandles)) return STATUS_INVALID_HANDLE;
    KIRQL Irql = KeAcquireSpinLockRaiseToDpc(&ObpLock);
    PVOID Body = ObpHandles[Slot];
    BOOLEAN Match = Body && (!Type || ObpHeader(Body)->Type == Type);
    if (Match) ObfReferenceObject(*Object = Body);
    KeReleaseSpinLock(&ObpLock, Irql);
    return Match ? STATUS_SUCCESS : Body ? STATUS_OBJECT_TYPE_MISMATCH : STATUS_INVALID_HANDLE;
}

NTSYSAPI NTSTATUS ZwClose(HANDLE Handle) {
    PVOID Body;
    TRY(ObReferenceObjectByHandle(Handle, 0, NULL, 0, &Body, NULL));
    ObpHandles[(ULONG64)Handle / 4 - 1] = NULL;
    ObfDereferenceObject(Body); /* the handle's reference, */
    ObfDereferenceObject(Body); /* and the one that was needed here */
    return STATUS_SUCCESS;
}
