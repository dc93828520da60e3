/* Objects with reference counts, and the one handle table. A body handed to any of these was made
 * by ObCreateObject: its header lies right before it, as in Windows. */
#pragma once
#include "ki.h"

typedef struct _OBJECT_TYPE {
    PCSTR Name;
    void (*Delete)(PVOID Body); /* at the last dereference, or NULL; the memory is freed after it */
} OBJECT_TYPE, *POBJECT_TYPE;
typedef struct _OBJECT_HEADER {
    LONG64 PointerCount, NotKept[3];
    POBJECT_TYPE Type; /* ObjectCreateInfo in Windows, which finds the type by TypeIndex */
    ULONG64 SecurityDescriptor, Body[];
} OBJECT_HEADER, *POBJECT_HEADER;
ASSERT_OFFSET(OBJECT_HEADER, Body, 0x30);
/* A zeroed body with one reference, the caller's. */
NTSTATUS ObCreateObject(POBJECT_TYPE Type, SIZE_T Bytes, PVOID *Body);
/* A handle, which takes over the caller's reference; a failure gives that reference up too. */
NTSTATUS ObInsertObject(PVOID Body, PHANDLE Handle);
LONG_PTR ObfReferenceObject(PVOID Body);
